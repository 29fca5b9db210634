"""The course's tools: exercises and their checks, learners' editions, grading, trainings."""
