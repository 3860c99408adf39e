"""The page of a run: what is on it, its figures, and the file.

`content` and `lists` reduce a test or a training stage to lists, numbers and small pictures; `run_files` reads what a
run has written; `curves`, `results`, `paired` and `figures` draw and count; `write` makes the pages.
It is handed arrays and objects, and imports nothing of the data sets, the model or the training.
"""
