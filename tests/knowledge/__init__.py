"""Sets of knowledge and the engine that makes them."""
