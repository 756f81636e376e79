"""How a dictionary is trained: recipes, objectives, schedules, and one trainer for many dictionaries on one stream."""
