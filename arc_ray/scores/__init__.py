"""Votes, scoring rules, intervals, the comparison of arms, submissions: numbers in, numbers with intervals out."""
