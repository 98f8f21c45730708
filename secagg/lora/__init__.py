"""The LoRA adapter as flat vectors: its forms, sketches, and public directions."""
