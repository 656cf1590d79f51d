"""Large pictures and videos: plan, split, assign to slots, merge."""
