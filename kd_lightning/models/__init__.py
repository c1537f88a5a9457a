"""Students and the parts that teachers share with them."""
