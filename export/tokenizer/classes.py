"""Tokenizer classes whose own rules override tokenizer.json in transformers 5; in this project tokenizer.json counts.

    overrules({"tokenizer_class": "GPTNeoXTokenizerFast"}, data)     # True

The rules say how a text is normalized, split and joined again; transformers then takes only vocabulary and merges from
tokenizer.json. Other classes, and those of a repository's own code, use tokenizer.json as it is.
"""

from typing import Any

# Names without the final "Tokenizer".
_NAMES = """
Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese Bertweet BigBird BioGpt Blenderbot BlenderbotSmall ByT5
CLIP CTRL Camembert Canine Clvp CodeGen CodeLlama Cohere Cpm CpmAnt DPRQuestionEncoder Deberta DebertaV2 Dia
DistilBert Electra Esm Esmc FSMT Flaubert Funnel GPT2 GPTNeoX GPTNeoXJapanese GPTSw3 Gemma Herbert LED Lasr LayoutLM
LayoutLMv2 LayoutLMv3 LayoutXLM Llama Longformer Luke Lxmert M2M100 MBart MBart50 MLuke MPNet Marian MarkupLM
MobileBert Mvp MyT5 Nllb Nougat OpenAIGPT PLBart Pegasus Perceiver Phobert Pop2Piano ProphetNet Qwen2 Qwen3_5 Reformer
RemBert RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter T5 Tapas Udop VideoPrism
Whisper XGLM XLM XLMRoberta XLNet
"""
OVERRULING = frozenset(f"{name}Tokenizer" for name in _NAMES.split())


def overrules(config: dict[str, Any], data: dict[str, Any]) -> bool:
    """Whether the class in `config`, a tokenizer_config.json, may override the rules of `data`, a tokenizer.json."""
    name = str(config.get("tokenizer_class")).removesuffix("Fast")
    if name == "LlamaTokenizer" and _by_bytes(data):  # transformers decides by that, too
        return False
    return name in OVERRULING and not config.get("auto_map")


def _by_bytes(data: dict[str, Any]) -> bool:
    sections = [data.get("pre_tokenizer"), data.get("decoder")]
    for section in list(sections):
        parts = section.get("pretokenizers", section.get("decoders")) if isinstance(section, dict) else None
        sections += parts if isinstance(parts, list) else []
    return any(isinstance(part, dict) and part.get("type") == "ByteLevel" for part in sections)
