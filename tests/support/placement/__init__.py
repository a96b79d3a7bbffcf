"""What the placement is compared with: baselines, an exact solver, and a second cost model.

Nothing here is product code, and nothing here calls the product's search.
"""
