"""Exercises: `check("01.2", answer)` says in words whether an answer is right, and if not, what is wrong."""

from course.exercises.checking import Verdict, Wrong, check, exercise, expect_close, judge

__all__ = ["Verdict", "Wrong", "check", "exercise", "expect_close", "judge"]
