"""How far a student is: agreement with its teacher, and answers against references."""
