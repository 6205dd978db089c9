"""A web page on which visitors upsample their pictures, as `pulse_jax.upsample` does it.

`desk` takes their searches, one after another, and knows nothing of the web. `page` shows it, with
Gradio. `__main__` is the command.
"""
