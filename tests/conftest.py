import jax

# On a GPU or TPU float32 products are otherwise rounded to TF32 or bfloat16, and the bounds on
# float32 errors wouldn't hold.
jax.config.update("jax_default_matmul_precision", "highest")
