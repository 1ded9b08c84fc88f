"""Tiny random models, a tokenizer of one token per byte, and a processor for pictures."""

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 320
BYTES = 260  # ids below are special tokens and bytes
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<turn>{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}"
    "{% else %}{% for part in m['content'] %}{% if part['type'] == 'image' %}PICTURE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{% endif %}</turn>{% endfor %}{% if add_generation_prompt %}<turn>model\n{% endif %}"
)
PICTURE_TOKENS = {"image_token": "<picture>", "boi_token": "<begin_picture>", "eoi_token": "<end_picture>"}
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GEMMA_TEXT = TEXT | {
    "num_hidden_layers": 4,
    "sliding_window": 16,  # shorter than a prompt and its answer, so that it matters
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token per byte behind the four special ones."""
    vocabulary = {"<pad>": 0, "<bos>": 1, "<eos>": 2, "<unk>": 3}
    vocabulary |= {char: 4 + i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens=PICTURE_TOKENS,
        padding_side="left",
    )
    fast.chat_template = CHAT_TEMPLATE.replace("PICTURE", "<begin_picture>")
    return fast


def tiny_processor() -> transformers.ProcessorMixin:
    """Gemma 3's, for pictures of 28 x 28 that become four tokens."""
    tokenizer = tiny_tokenizer()
    sizes = {"height": VISION["image_size"], "width": VISION["image_size"]}
    images = transformers.Gemma3ImageProcessorPil(size=sizes)
    return transformers.Gemma3Processor(
        image_processor=images, tokenizer=tokenizer, chat_template=tokenizer.chat_template, image_seq_length=4
    )


def build(kind: str) -> transformers.PreTrainedModel:
    """A random model; the weights are spread so that its answers are varied and its argmax is no near-tie."""
    torch.manual_seed(7)
    if kind == "llama":
        config = transformers.LlamaConfig(**TEXT, num_hidden_layers=3, tie_word_embeddings=False)
        model = transformers.LlamaForCausalLM(config)
    elif kind == "gemma3_text":
        config = transformers.Gemma3TextConfig(**GEMMA_TEXT, tie_word_embeddings=True)
        model = transformers.Gemma3ForCausalLM(config)
    else:
        config = transformers.Gemma3Config(
            text_config=GEMMA_TEXT,
            vision_config=VISION,
            mm_tokens_per_image=4,
            image_token_index=BYTES,
            boi_token_index=BYTES + 1,
            eoi_token_index=BYTES + 2,
        )
        model = transformers.Gemma3ForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (0.05 if "embed" in name else 0.25))
            elif "post_" in name and kind != "llama":
                weight.fill_(16.0)  # else tied embeddings make the model repeat its input
    return model.eval()
