"""Power-function averages in the training loops of others. Importing this imports none of them.

- :mod:`edm2lite.integrations.lightning`: callback for Lightning's Trainer; extra ``lightning``.
- :mod:`edm2lite.integrations.transformers`: callback for Hugging Face's Trainer; extra
  ``transformers``.
- :mod:`edm2lite.integrations.lora`: what LoRA by peft adds to the weights, for any loop.
"""
