"""Names that other tools give an option, and what to use here instead; for error messages.

    instead_of("max_new_tokens")        # "here: gen_length, ..."; None for a name that no known tool uses

The names are those of transformers' GenerationConfig, of LLaDA's, Dream's, DPad's and Fast-dLLM's scripts, and of
servers that speak OpenAI's protocol.
"""

_LENGTH = "gen_length, which counts new tokens and is a multiple of block_length"
_BLOCK = "block_length"
_STEPS = 'steps, the total over all blocks, with decoder="fixed", "entropy" or "margin"'
_CACHE = 'cache="none", "prefix" or "dual"'
_DECODER = (
    'decoder; low_confidence and maskgit_plus are "fixed", or "threshold" where a threshold is given, topk_margin is '
    '"margin", entropy is "entropy", and random orders are not offered'
)
_GAUSSIAN = "schedule=dpad.Gaussian(k, scale, window), where k is what DPad's scripts call sigma"
_EOS = "eos_token_ids, a tuple of token ids; for stop strings, cut the text of the result"
_PROMPT = "the prompt, the first argument: text, chat messages or token ids; generate_batch takes a list of them"
_CODEC = "text is wrapped by the chat template unless raw=True; model.codec encodes and decodes"
_GREEDY = "temperature alone; 0 is greedy"
_NONE = "nothing: it is not offered; leave it out"

_OPTIONS = {
    **dict.fromkeys(
        ("max_new_tokens", "max_tokens", "max_length", "max_gen_toks", "max_gen_length", "length"), _LENGTH
    ),
    **dict.fromkeys(("min_length", "min_new_tokens", "min_tokens"), _NONE),
    **dict.fromkeys(("block_size", "bd_size", "block_len"), _BLOCK),
    **dict.fromkeys(("small_block_size", "sub_block_length"), _NONE),
    **dict.fromkeys(("num_steps", "diffusion_steps", "denoising_steps", "num_inference_steps", "n_steps"), _STEPS),
    **dict.fromkeys(("use_cache", "dual_cache", "use_dual_cache", "prefix_cache", "use_block_cache"), _CACHE),
    **dict.fromkeys(("kv_cache", "cache_mode", "cache_type", "cache_implementation"), _CACHE),
    **dict.fromkeys(("alg", "algorithm", "remasking", "remask", "strategy", "remasking_strategy", "order"), _DECODER),
    **dict.fromkeys(("sigma", "scale", "k", "window", "window_size", "suffix_window", "dropout"), _GAUSSIAN),
    **dict.fromkeys(("gaussian", "sampling_scale", "dropout_schedule"), _GAUSSIAN),
    **dict.fromkeys(("preserved_tokens", "num_preserved", "count", "uniform"), "schedule=dpad.Uniform(count, window)"),
    **dict.fromkeys(
        ("positions", "suffix_positions", "keep"),
        "schedule=dpad.Explicit.from_positions(positions, prompt_length, block_length)",
    ),
    **dict.fromkeys(("stop", "stop_sequences", "stop_strings", "until", "stop_token_ids", "eos", "eos_token_id"), _EOS),
    **dict.fromkeys(("stopping_criteria", "eot_id"), _EOS),
    **dict.fromkeys(("early_stop", "early_stopping"), "early_termination, True or False"),
    "do_sample": _GREEDY,
    **dict.fromkeys(("temp", "sampling_temperature", "T"), "temperature"),
    **dict.fromkeys(("topk", "top_K"), "top_k"),
    **dict.fromkeys(("topp", "top_P", "nucleus"), "top_p"),
    **dict.fromkeys(("random_seed", "manual_seed", "rng", "generator"), "seed, an integer of 0 or more"),
    **dict.fromkeys(("conf_threshold", "confidence_threshold", "confidence"), "threshold"),
    **dict.fromkeys(("mask_id", "mask_token_id", "mask_token"), "nothing: the mask is the bundle's own; leave it out"),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "attention_mask", "position_ids"), "nothing: leave it out"),
    **dict.fromkeys(("cfg", "cfg_scale", "guidance_scale", "unsupervised_cfg"), _NONE),
    **dict.fromkeys(("alg_temp", "eps", "min_p", "repetition_penalty", "num_beams", "n", "logprobs"), _NONE),
    **dict.fromkeys(("num_return_sequences", "presence_penalty", "frequency_penalty", "logit_bias"), _NONE),
    **dict.fromkeys(("logits_eos_inf", "confidence_eos_eot_inf", "length_penalty"), _NONE),
    **dict.fromkeys(("prompts", "messages", "input_ids", "inputs", "text", "texts", "input", "prompt_ids"), _PROMPT),
    **dict.fromkeys(
        ("system", "system_prompt"), 'a chat message before the others: {"role": "system", "content": ...}'
    ),
    **dict.fromkeys(("tokenizer", "chat_template", "apply_chat_template", "skip_special_tokens"), _CODEC),
    **dict.fromkeys(("add_generation_prompt", "add_special_tokens"), _CODEC),
    **dict.fromkeys(("stream", "streamer"), "model.stream(prompt), one event per forward pass"),
    **dict.fromkeys(("callback", "hook", "generation_tokens_hook_func"), "on_step, a function of one StepEvent"),
    **dict.fromkeys(("output_history", "return_dict_in_generate", "verbose"), "on_step, or model.stream(prompt)"),
    **dict.fromkeys(
        ("options", "generation_config", "config", "gen_kwargs"), "its fields as keywords, as **vars(options)"
    ),
    **dict.fromkeys(("engine", "threads", "device", "dtype", "batch_size"), "nothing in a call: see dpad.load"),
}

_DEVICE = 'engine="torch-cuda" or another that dpad inspect lists; CUDA_VISIBLE_DEVICES chooses the GPU'
_EXPORT = "an option of dpad export, which fixes it in the bundle"
_LOAD = {
    **dict.fromkeys(("device", "device_map", "provider", "providers", "backend", "accelerator", "gpu"), _DEVICE),
    **dict.fromkeys(("dtype", "torch_dtype", "precision"), f"--dtype, {_EXPORT}; choose among several by engine"),
    **dict.fromkeys(("load_in_4bit", "load_in_8bit", "quantization", "quantization_config"), f"--weights, {_EXPORT}"),
    **dict.fromkeys(("max_length", "max_model_len", "max_seq_len", "n_ctx"), f"--max-length, {_EXPORT}"),
    **dict.fromkeys(("max_batch", "max_batch_size", "batch_size", "max_num_seqs"), f"--max-batch, {_EXPORT}"),
    **dict.fromkeys(
        ("revision", "cache_dir", "token", "local_files_only"), "nothing: load opens what dpad export made"
    ),
    "trust_remote_code": "nothing: no code of a checkpoint is ever run",
    **dict.fromkeys(("num_threads", "n_threads", "intra_op_num_threads", "num_workers"), "threads"),
    **dict.fromkeys(("warmup", "warm_up", "compile", "enforce_eager"), "warm, True or False"),
    **dict.fromkeys(("verify", "check", "check_hashes", "hashes", "checksum"), "verify_hashes"),
}


def instead_of(name: str, *, load: bool = False) -> str | None:
    """What to pass instead of the option `name` of another tool: to `dpad.load` if `load`, else to a call."""
    found = (_LOAD if load else _OPTIONS).get(name)
    return None if found is None else f"here: {found}"
