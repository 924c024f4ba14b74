"""Power-function averages in the trainers of other frameworks; importing this loads none of them.

- :mod:`edm2lite.integrations.lightning`: callback for Lightning's Trainer; extra ``lightning``.
- :mod:`edm2lite.integrations.transformers`: callback for Hugging Face's Trainer; extra
  ``transformers``.
- :mod:`edm2lite.integrations.lora`: averages of what LoRA (peft) adds to the weights, for any loop.
"""
