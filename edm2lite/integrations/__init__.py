"""Power-function averages in the training loops of others; each module needs its own package.

======================================  =======================  ===================
module                                  works in                 extra
======================================  =======================  ===================
:mod:`edm2lite.integrations.lightning`  Lightning's Trainer      ``[lightning]``
:mod:`edm2lite.integrations.transformers`  Hugging Face's Trainer  ``[transformers]``
:mod:`edm2lite.integrations.lora`       any loop, LoRA by peft   none
======================================  =======================  ===================

Importing this package imports none of them.
"""
