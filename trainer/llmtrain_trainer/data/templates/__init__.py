"""Rendering of chat templates, and the parts of the text: template, contents, responses."""
