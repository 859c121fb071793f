"""What comes in: weights and tokenizers of a Hugging Face directory."""
