"""Studies: many trainings from one description, one table with error bars, and nothing lost in between."""
