"""A tiny text model, trained here from text that every Python installation has.

`python -m emcd.inference.training FOLDER`, or `emcd model train`. Nothing is imported here: the
modules need numpy, tokenizers and onnx.
"""
