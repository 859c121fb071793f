"""What the process takes, budgets, the plan."""
