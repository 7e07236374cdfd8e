"""Reads the arguments that lm-evaluation-harness passes: generation arguments of a request, and model arguments.

    wanted = Wanted({"max_gen_toks": "256", "num_beams": 1, "until": ["\\n\\n"]}, default_tokens=128)
    wanted.tokens, wanted.options, wanted.stops

They come from YAML and command lines, so a number may be text, and they have the names of transformers, vLLM and
OpenAI's API. An argument that this project does not support is accepted if its value has no effect, such as one beam, a
penalty of 1 or a filter that is off. Any other is refused, with its name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

from dpad.evaluation.yaml_values import flag, integer, is_none, number
from dpad.runtime.decoding.options import GenerationOptions
from dpad.runtime.errors import InvalidRequest
from dpad.runtime.show import shown

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # the first one given is used
STOPS = ("until", "stop", "stop_sequences", "stop_strings")  # all of them are used
_READ = {*LENGTHS, *STOPS, "temperature", "top_k", "top_p", "do_sample", "seed", "eos_token_id"}

# Ignored arguments: they configure another library's work, or matter only with beams or padding.
_UNREAD = {
    *("use_cache", "pad_token_id", "pad_token", "bos_token_id", "decoder_start_token_id", "length_penalty"),
    *("early_stopping", "low_memory", "synced_gpus", "remove_invalid_values", "spaces_between_special_tokens"),
    *("cache_implementation", "disable_compile", "detokenize", "renormalize_logits", "user"),
}
# Name -> the value that has no effect; None has none for every name.
_NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "n", "best_of", "guidance_scale"), 1),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "typical", "tfs", "tfs_z"), 1),
    **dict.fromkeys(("min_p", "top_a", "top_n_sigma", "epsilon_cutoff", "eta_cutoff", "penalty_alpha", "mirostat"), 0),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "diversity_penalty", "xtc_probability"), 0),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "dry_multiplier"), 0),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_tokens", "logprobs", "top_logprobs", "prompt_logprobs"), 0),
    **dict.fromkeys(("use_beam_search", "ignore_eos", "echo", "stream", "include_stop_str_in_output"), False),
    **dict.fromkeys(("output_scores", "output_logits", "output_attentions", "output_hidden_states"), False),
    **dict.fromkeys(("return_dict_in_generate", "no_stop_trim", "dynamic_temperature"), False),
    **dict.fromkeys(("skip_special_tokens", "trim_stop"), True),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "suppress_tokens", "bad_words"), ()),
    **dict.fromkeys(("begin_suppress_tokens", "sequence_bias", "logit_bias", "stop_token_ids", "logits_processor"), ()),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), None),
    **dict.fromkeys(("max_time", "prompt_lookup_num_tokens", "dola_layers", "truncate_prompt_tokens"), None),
    **dict.fromkeys(
        ("stopping_criteria", "response_format", "guided_decoding", "allowed_token_ids", "max_length"), None
    ),
}
_INSTEAD = {
    "max_length": "it counts the prompt; give max_gen_toks",
    "stop_token_ids": "give eos_token_id, all tokens that end the text",
    "min_p": "give top_k or top_p",
}

# Arguments of the harness's other models -> what to do instead.
_FOREIGN = {
    **dict.fromkeys(("pretrained", "model", "model_path", "path"), "give bundle=DIR, made by dpad export"),
    **dict.fromkeys(("tokenizer", "use_fast_tokenizer"), "a bundle brings its tokenizer; leave it out"),
    **dict.fromkeys(("add_bos_token", "prefix_token_id"), "the bundle's tokenizer decides this; leave it out"),
    **dict.fromkeys(("dtype", "softmax_dtype", "quantization", "load_in_8bit", "load_in_4bit", "gptqmodel", "autogptq"),
                    "a bundle's engines have their precisions; choose one with engine=NAME (dpad inspect lists them)"),
    **dict.fromkeys(("trust_remote_code", "revision", "subfolder", "peft", "delta", "gguf_file"),
                    "that was decided when the bundle was exported; leave it out"),
    **dict.fromkeys(("max_length", "max_model_len"),
                    "the bundle's limits decide; leave it out, or export with a larger --max-length"),
    **dict.fromkeys(("max_gen_toks", "max_new_tokens"), "give gen_length=N, for requests that name no length"),
    **dict.fromkeys(("parallelize", "device_map", "device_map_option", "tensor_parallel_size", "data_parallel_size",
                     "gpu_memory_utilization", "max_memory_per_gpu", "max_cpu_memory", "offload_folder"),
                    "one process uses one device, chosen with CUDA_VISIBLE_DEVICES; leave it out"),
    **dict.fromkeys(("attn_implementation", "backend", "swap_space", "enforce_eager"),
                    "the engine decides this; choose with engine=NAME"),
}  # fmt: skip


_NO_LIMIT = ("steps", "top_k", "top_p", "window")  # decoding options for which None is a valid value
_DECODING = {field.name for field in fields(GenerationOptions)} | {"preset", "window", "k", "scale", "count"}


class Wanted:
    """The parsed generation arguments of one request.

    Attributes:
        tokens: most tokens of the answer.
        options: fields of `GenerationOptions` that the request sets.
        stops: stop strings; the answer is cut before the first.
    """

    def __init__(self, arguments: Any, default_tokens: int) -> None:
        """Read `arguments`; raises `InvalidRequest` for the first that cannot be served, with its value."""
        if not isinstance(arguments, Mapping):
            raise InvalidRequest(f"generation arguments are names with values, not {shown(arguments)}")
        for name, value in arguments.items():
            _require_neutral(name, value)
        lengths = [(name, arguments[name]) for name in LENGTHS if not is_none(arguments.get(name))]
        self.tokens = _positive(*lengths[0]) if lengths else default_tokens
        self.stops = [text for name in STOPS for text in _texts(name, arguments.get(name))]
        given = _sampling(arguments) if flag("do_sample", arguments.get("do_sample"), True) else {}
        sampled = given.get("temperature", 0) > 0
        self.options: dict[str, Any] = given if sampled else {"temperature": 0.0, "top_k": None, "top_p": None}
        if not is_none(seed := arguments.get("seed")):
            self.options["seed"] = integer("seed", seed)
        if not is_none(ends := arguments.get("eos_token_id")):
            self.options["eos_token_ids"] = tuple(integer("eos_token_id", end) for end in _listed(ends))


def check_names(names: Iterable[str], own: Iterable[str]) -> None:
    """Raise `InvalidRequest` for the first model argument that is neither of `own` nor a decoding option."""
    known = [*own, *(field.name for field in fields(GenerationOptions))]
    for name in names:
        if name in known:
            continue
        if name in _FOREIGN:
            raise InvalidRequest(f"model argument {name} is another model's: {_FOREIGN[name]}")
        close = "".join(f" (did you mean {match}?)" for match in get_close_matches(str(name), known, 1))
        raise InvalidRequest(f"model argument {shown(name)} is not known{close}; known are {', '.join(known)}")


def decoding(options: Mapping[str, Any]) -> dict[str, Any]:
    """Read decoding options from a command line, where numbers and booleans may be text and `none` means None.

    An option that is None is left out, so that its default applies, unless None is a valid value for it.
    """
    read: dict[str, Any] = {}
    for name, value in options.items():
        if name in ("schedule", "cache"):
            read[name] = "none" if value is None else value
        elif name == "eos_token_ids":
            read[name] = None if is_none(value) else tuple(integer(name, end) for end in _listed(value))
        elif name == "early_termination":
            read[name] = flag(name, value, True)
        elif is_none(value):
            if name in _NO_LIMIT:
                read[name] = None
        elif name in ("decoder", "pace", "preset"):
            read[name] = value
        elif name in ("threshold", "factor", "temperature", "top_p", "k", "scale"):
            read[name] = number(name, value)
        else:
            read[name] = integer(name, value)
    return read


def _require_neutral(name: Any, value: Any) -> None:
    """Raise `InvalidRequest` unless the argument is read elsewhere, or its value has no effect."""
    if isinstance(name, str) and name in _DECODING - _READ:
        raise InvalidRequest(
            f"generation argument {name} ({shown(value)}) is a decoding option, which applies to all requests; "
            f"give it in --model_args, as {name}=VALUE"
        )
    if not isinstance(name, str) or name not in {*_READ, *_UNREAD, *_NEUTRAL}:
        close = get_close_matches(str(name), [*_READ, *_NEUTRAL], 1) if isinstance(name, str) else []
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InvalidRequest(
            f"generation argument {shown(name)} ({shown(value)}) is not known{hint}; "
            f"leave it out; known are {', '.join(sorted(_READ))}"
        )
    if name not in _NEUTRAL or is_none(value) or _is_neutral(value, _NEUTRAL[name]):
        return
    neutral = "nothing" if _NEUTRAL[name] in (None, ()) else repr(_NEUTRAL[name])
    instead = _INSTEAD.get(name, "leave it out")
    raise InvalidRequest(
        f"generation argument {name} {shown(value)} cannot be served, only {neutral}, which has no effect; {instead}"
    )


def _is_neutral(value: Any, neutral: Any) -> bool:
    if neutral is None:
        return False
    if neutral == ():
        return isinstance(value, (Sequence, Mapping)) and not isinstance(value, str) and not len(value)
    try:
        if isinstance(neutral, bool):
            return flag("", value, neutral) is neutral
        return value is False if isinstance(value, bool) and not neutral else number("", value) == neutral
    except InvalidRequest:
        return False


def _positive(name: str, value: Any) -> int:
    tokens = integer(name, value)
    if tokens < 1:
        raise InvalidRequest(f"{name} {tokens} must be 1 or more; leave it out to use the option gen_length")
    return tokens


def _texts(name: str, value: Any) -> list[str]:
    """Read one stop string or several; empty ones are left out."""
    if value is None:
        return []
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        raise InvalidRequest(
            f"{name} {shown(value)} is neither text nor a list of texts; quote text that YAML reads as a number"
        )
    return [text for text in texts if text]


def _sampling(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Read `temperature`, `top_k` and `top_p`, if given; None in the result is a filter that is off."""
    given: dict[str, Any] = {}
    if not is_none(heat := arguments.get("temperature")):
        given["temperature"] = number("temperature", heat)
        if given["temperature"] < 0:
            raise InvalidRequest(f"temperature {shown(heat)} must be 0 (greedy) or more")
    if not is_none(top := arguments.get("top_k")):
        count = integer("top_k", top)
        if count < -1:
            raise InvalidRequest(f"top_k {shown(top)} must be 1 or more, or 0 or -1 to turn the filter off")
        given["top_k"] = count if count > 0 else None
    if not is_none(share := arguments.get("top_p")):
        part = number("top_p", share)
        if not 0 < part <= 1:
            raise InvalidRequest(f"top_p {shown(share)} must be above 0 and at most 1; 1 turns the filter off")
        given["top_p"] = part if part < 1 else None
    return given


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [value]
