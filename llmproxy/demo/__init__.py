"""A tiny OpenAI-compatible server that behaves like vLLM, so that the proxy can be tried with no GPU.

``python -m llmproxy.demo --port 8000 --model demo`` runs it; :mod:`llmproxy.demo.settings` tells its options.
It sleeps and wakes as vLLM does (:mod:`llmproxy.demo.power`), and several share a pretended GPU
(:mod:`llmproxy.demo.gpus`), so that a schedule that would fail on a real one fails here.
"""
