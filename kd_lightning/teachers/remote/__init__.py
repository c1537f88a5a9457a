"""What it takes to use a server in earnest: one file per concern; `ServerTeacher` holds them."""
