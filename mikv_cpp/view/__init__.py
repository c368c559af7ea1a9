"""`python -m mikv_cpp.view model.gguf -p TEXT`: where a prompt's precision went, as text, picture or JSON."""
