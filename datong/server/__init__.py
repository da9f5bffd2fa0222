"""Tokens over HTTP: the OpenAI API in front of the engine. Start reading at `app.py` (routes) and `service.py`.

request ──app.py──▶ chat.py / completions.py ──prompts.py──▶ Job ──service.py──▶ engine, in its own thread
                                ▲                                        │
                                └───────────── events, once per step ────┘
"""
