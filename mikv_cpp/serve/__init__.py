"""`python -m mikv_cpp.serve model.gguf`: an OpenAI-compatible server, and a page that shows the cache as it fills.

One model with one context answers one request at a time; those that wait are served in turn, one of each client. That is the
simplest arrangement that is right: llama_cpp.Llama keeps one sequence, and the cache's whole pool of refinement is the running
conversation's. Its price: answers are not batched.

    __main__   the command                  requests   what a client may ask, checked
    app        addresses and their answers  answers    from a request to llama_cpp's calls and back
    desk       the one who asks the model   tool_calls what in an answer is a call of a tool
    limits     body size, key, queue        picture    the cache as JSON
    metrics    the same for Prometheus      page/      the page at /
"""
