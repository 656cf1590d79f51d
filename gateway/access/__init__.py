"""Who may ask how much: callers, tiers, budgets, the order of waiting requests, the audit log."""
