"""The page of a run: what is on it, its figures, and the file.

`content` and `ranking` reduce a test or a training stage to lists, numbers and small pictures; `run_files` reads what
a run has written; `figures`, `curves` and `page` draw; `write` puts a page together. It is handed arrays and objects,
and imports nothing of the data sets, the model or the training.
"""
