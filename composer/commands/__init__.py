"""The commands of `composer`, one module for each, found by their presence here.

A module has one function, `register(app)`, that adds its command to the app. It imports nothing
heavy at its top: PyTorch and the models come in when the command runs, so that `composer --help`
answers at once.
"""
