"""Text encoders of transformers with random weights, saved to folders."""

import torch

WORDS = ["red heart", "blue car", "green apple on a table", "grinning face with big eyes", "cat"]
NUM_TOKENS = 16


def save_tokenizer(folder, template, **tokens):
    """A byte-level tokenizer of a few words; returns the number of its tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "</s>", "<unk>", "<s>"]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(3 * WORDS, trainer)
    pairs = [(token, special.index(token)) for token in ("</s>", "<s>")]
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=pairs)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", **tokens
    )
    fast.save_pretrained(folder)
    return len(fast)


def save_model(folder, model):
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    return folder


def clip_text(size):
    return {
        "vocab_size": size, "hidden_size": 16, "intermediate_size": 32, "projection_dim": 12,
        "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": NUM_TOKENS,
        "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0,
    }  # fmt: skip


def save_clip(folder, kind="CLIPTextModelWithProjection"):
    """A CLIP text model, or a whole CLIP."""
    import transformers

    size = save_tokenizer(folder, "<s> $A </s>", bos_token="<s>", model_max_length=NUM_TOKENS)
    torch.manual_seed(0)
    if kind != "CLIPModel":
        config = transformers.CLIPTextConfig(**clip_text(size))
    else:
        vision = {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 4,
        }  # fmt: skip
        config = transformers.CLIPConfig(
            text_config=clip_text(size), vision_config=vision, projection_dim=12
        )
    return save_model(folder, getattr(transformers, kind)(config))


def save_t5(folder):
    import transformers

    size = save_tokenizer(folder, "$A </s>")
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    return save_model(folder, transformers.T5EncoderModel(config))


def save_bert(folder):
    import transformers

    size = save_tokenizer(folder, "<s> $A </s>", bos_token="<s>")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=NUM_TOKENS,
    )  # fmt: skip
    return save_model(folder, transformers.BertModel(config))
