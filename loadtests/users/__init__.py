"""Locust users on a started system, and what they saw."""
