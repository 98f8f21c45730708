"""``secagg plan``: what a task will cost, before it exists."""
