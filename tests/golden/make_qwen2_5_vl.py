"""Makes the golden numbers of Qwen2.5-VL with the torch of transformers.

Run `python tests/golden/make_qwen2_5_vl.py` where torch, torchvision and
transformers are installed; it writes its `qwen2_5_vl*` files beside itself.
The weights are small whole numbers times a scale, so that one byte each holds
them exactly.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

# A torchvision built for another torch cannot load its compiled operators;
# it wants to know these two, and resizing needs neither.
if not hasattr(torch.ops.torchvision, "nms"):
  operators = torch.library.Library("torchvision", "DEF")
  for name in ("nms", "qnms"):
    operators.define(f"{name}(Tensor boxes, Tensor scores, float t) -> Tensor")

from transformers import (  # noqa: E402
  PreTrainedTokenizerFast,
  Qwen2_5_VLConfig,
  Qwen2_5_VLForConditionalGeneration,
  Qwen2_5_VLProcessor,
  Qwen2VLImageProcessor,
  Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_qwen2_vl import (  # noqa: E402
  smart_resize,
)

HERE = Path(__file__).parent
SPECIAL = (
  "<|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> "
  "<|image_pad|> <|video_pad|>"
).split()
# The template that the published processors ship.
CHAT = (
  "{% set image_count = namespace(value=0) %}"
  "{% set video_count = namespace(value=0) %}"
  "{% for message in messages %}"
  "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
  "You are a helpful assistant.<|im_end|>\n{% endif %}"
  "<|im_start|>{{ message['role'] }}\n"
  "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n"
  "{% else %}{% for content in message['content'] %}"
  "{% if content['type'] == 'image' or 'image' in content or 'image_url' in "
  "content %}{% set image_count.value = image_count.value + 1 %}"
  "{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}"
  "<|vision_start|><|image_pad|><|vision_end|>"
  "{% elif content['type'] == 'video' or 'video' in content %}"
  "{% set video_count.value = video_count.value + 1 %}"
  "{% if add_vision_id %}Video {{ video_count.value }}: {% endif %}"
  "<|vision_start|><|video_pad|><|vision_end|>"
  "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}"
  "<|im_end|>\n{% endif %}{% endfor %}"
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PATCH, MERGE, FPS = 4, 2, 4.0
# Sizes in whole image tokens (8 pixels), so that nothing is resized; windows
# are 2 x 2 tokens and most pictures end inside one.
ROWS = (
  ("One?", ((40, 24),), ()),
  ("Two pictures?", ((8, 56), (32, 16)), ()),
  ("A picture and a video.", ((24, 24),), ((5, 40, 48),)),
  ("No picture at all.", (), ()),
)
COMPLETION = 12
GENERATED = 64
GRADIENTS = (
  "model.visual.patch_embed.proj.weight",
  "model.visual.blocks.0.attn.qkv.bias",
  "model.visual.blocks.1.attn.qkv.weight",
  "model.visual.blocks.2.mlp.gate_proj.weight",
  "model.visual.merger.ln_q.weight",
  "model.visual.merger.mlp.0.bias",
  "model.language_model.embed_tokens.weight",
  "model.language_model.layers.0.self_attn.k_proj.weight",
  "model.language_model.layers.1.mlp.down_proj.weight",
)
RESIZED = ((61, 97), (28, 150), (131, 50), (20, 20))
LIMITS = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 7}


def make_tokenizer():
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = {letter: i for i, letter in enumerate(letters)}
  inner = tokenizers.Tokenizer(tokenizer_models.BPE(vocabulary, []))
  inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  inner.decoder = decoders.ByteLevel()
  inner.add_special_tokens(SPECIAL)
  return PreTrainedTokenizerFast(
    tokenizer_object=inner,
    pad_token=SPECIAL[0],
    eos_token=SPECIAL[2],
    chat_template=CHAT,
  )


def make_config(ids):
  return Qwen2_5_VLConfig(
    vision_config=dict(
      depth=4,
      hidden_size=32,
      intermediate_size=40,
      num_heads=2,
      patch_size=PATCH,
      spatial_merge_size=MERGE,
      temporal_patch_size=2,
      tokens_per_second=2,
      window_size=16,
      out_hidden_size=48,
      fullatt_block_indexes=[1, 3],
    ),
    text_config=dict(
      vocab_size=264,
      hidden_size=48,
      intermediate_size=64,
      num_hidden_layers=2,
      num_attention_heads=4,
      num_key_value_heads=2,
      head_dim=12,
      rms_norm_eps=1e-6,
      rope_parameters={
        "rope_type": "default",
        "rope_theta": 1e4,
        "mrope_section": [2, 2, 2],
      },
    ),
    image_token_id=ids["<|image_pad|>"],
    video_token_id=ids["<|video_pad|>"],
    vision_start_token_id=ids["<|vision_start|>"],
    vision_end_token_id=ids["<|vision_end|>"],
    tie_word_embeddings=False,
  )


def fill(name, shape):
  """Bytes, scale and offset of a weight."""
  rng = np.random.default_rng(zlib.crc32(name.encode()))
  whole = np.clip(np.round(rng.standard_normal(shape) * 40), -127, 127)
  whole = whole.astype(np.int8)
  if "norm" in name or "ln_q" in name:
    return whole, 2**-7, 1.0
  if name.endswith("bias"):
    return whole, 2**-8, 0.0
  if "embed_tokens" in name:
    return whole, 2**-5, 0.0
  fan_in = int(np.prod(shape[1:]))
  return whole, 2.0 ** np.round(np.log2(1.5 * fan_in**-0.5 / 40)), 0.0


def make_model(config, out, info):
  model = Qwen2_5_VLForConditionalGeneration._from_config(
    config, attn_implementation="eager"
  ).float()
  info["weights"] = {}
  with torch.no_grad():
    for name, weight in model.state_dict().items():
      whole, scale, offset = fill(name, tuple(weight.shape))
      out[f"weights/{name}"] = whole
      info["weights"][name] = [float(scale), offset]
      weight.copy_(torch.from_numpy(whole.astype(np.float32) * scale + offset))
  return model.eval()


def make_processor(tokenizer, patch, limits):
  sizes = dict(patch_size=patch, merge_size=MERGE, size=limits)
  return Qwen2_5_VLProcessor(
    image_processor=Qwen2VLImageProcessor(**sizes),
    tokenizer=tokenizer,
    video_processor=Qwen2VLVideoProcessor(
      **sizes, do_sample_frames=False, cap_pixels_per_frame=False
    ),
    chat_template=CHAT,
  )


def process(processor, question, pictures, videos):
  content = [{"type": "image"} for _ in pictures]
  content += [{"type": "video"} for _ in videos]
  content += [{"type": "text", "text": question}]
  text = processor.apply_chat_template(
    [{"role": "user", "content": content}],
    tokenize=False,
    add_generation_prompt=True,
  )
  metadata = [
    dict(fps=FPS, total_num_frames=len(v), frames_indices=list(range(len(v))))
    for v in videos
  ]
  return processor(
    text=[text],
    images=[torch.from_numpy(p).permute(2, 0, 1) for p in pictures] or None,
    videos=[torch.from_numpy(v).permute(0, 3, 1, 2) for v in videos] or None,
    video_metadata=metadata or None,
    return_tensors="pt",
  )


def rows_of(processor, out, info):
  rng = np.random.default_rng(0)
  rows = []
  for i, (question, pictures, videos) in enumerate(ROWS):
    draw = lambda shape: rng.integers(256, size=(*shape, 3)).astype(np.uint8)
    pictures, videos = list(map(draw, pictures)), list(map(draw, videos))
    for j, x in enumerate(pictures + videos):
      out[f"pictures/{i}/{j}"] = x
    rows.append(process(processor, question, pictures, videos))
    info["rows"].append(
      {
        "question": question,
        "pictures": len(pictures) + len(videos),
        "ids": rows[-1]["input_ids"][0].tolist(),
      }
    )
  return rows


def collate(rows, tails, side, pad):
  """One batch of rows, each with its tail, padded on one side."""
  columns = max(r["input_ids"].shape[1] + len(t) for r, t in zip(rows, tails))
  batch = {"input_ids": [], "attention_mask": [], "mm_token_type_ids": []}
  for row, tail in zip(rows, tails):
    ids = torch.cat([row["input_ids"][0], torch.tensor(tail, dtype=torch.long)])
    types = torch.nn.functional.pad(row["mm_token_type_ids"][0], (0, len(tail)))
    room = columns - len(ids)
    width = (room, 0) if side == "left" else (0, room)
    grow = lambda x, value: torch.nn.functional.pad(x, width, value=value)  # noqa: B023
    batch["input_ids"].append(grow(ids, pad))
    batch["attention_mask"].append(grow(torch.ones_like(ids), 0))
    batch["mm_token_type_ids"].append(grow(types, 0))
  batch = {name: torch.stack(xs) for name, xs in batch.items()}
  for name in (
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
  ):
    parts = [row[name] for row in rows if name in row]
    if parts:
      batch[name] = torch.cat(parts)
  seconds = [s for row in rows for s in row.get("second_per_grid_ts", [])]
  if seconds:
    batch["second_per_grid_ts"] = torch.tensor(seconds)
  return batch


def forward(model, batch):
  return model(**batch, output_hidden_states=True, use_cache=False)


def main():
  out, info = {}, {"rows": [], "fps": FPS, "chat_template": CHAT}
  tokenizer = make_tokenizer()
  ids = tokenizer.get_vocab()
  config = make_config(ids)
  info["config"] = json.loads(config.to_json_string(use_diff=False))
  model = make_model(config, out, info)
  small = {"shortest_edge": 64, "longest_edge": 64 * 64}
  processor = make_processor(tokenizer, PATCH, small)
  rows = rows_of(processor, out, info)

  rng = np.random.default_rng(1)
  tails = [rng.integers(256, size=COMPLETION - i).tolist() for i in range(4)]
  right = collate(rows, tails, "right", ids["<|endoftext|>"])
  left = collate(rows, tails, "left", ids["<|endoftext|>"])
  positions, _ = model.model.get_rope_index(
    **{k: v for k, v in right.items() if not k.startswith("pixel")}
  )
  result = forward(model, right)
  other = forward(model, left)
  gap = 0.0
  mask = right["attention_mask"].bool()
  value = rng.standard_normal(config.text_config.hidden_size)
  out["value_head"] = value.astype(np.float32)
  for i, row in enumerate(info["rows"]):
    n = len(row["ids"])
    row["completion"] = tails[i]
    out[f"positions/{i}"] = positions[:, i, :n].T.numpy().astype(np.int32)
    here, there = mask[i], left["attention_mask"][i].bool()
    hidden = result.hidden_states[-1][i][here]
    logits = result.logits[i][here]
    gap = max(gap, (logits - other.logits[i][there]).abs().max().item())
    out[f"hidden/{i}"] = hidden.detach().numpy()
    out[f"logits/{i}"] = logits[n - 1 : -1].detach().numpy()
    out[f"score/{i}"] = hidden[-1].detach().numpy() @ out["value_head"] + 0.5
  info["left against right padding, largest difference of logits"] = gap

  for name, pixels, grid in (
    ("image", "pixel_values", "image_grid_thw"),
    ("video", "pixel_values_videos", "video_grid_thw"),
  ):
    features = model.model.visual(right[pixels], right[grid]).pooler_output
    out[f"features/{name}"] = features.detach().numpy()
    info[f"{name}_grids"] = right[grid].tolist()

  logp = torch.log_softmax(result.logits.float(), -1)
  total = 0.0
  for i, row in enumerate(info["rows"]):
    n, tail = len(row["ids"]), torch.tensor(tails[i])
    total -= logp[i, n - 1 : n - 1 + len(tail)].gather(1, tail[:, None]).sum()
  loss = total / sum(map(len, tails))
  loss.backward()
  info["loss"] = loss.item()
  weights = dict(model.named_parameters())
  for name in GRADIENTS:
    out[f"gradients/{name}"] = weights[name].grad.numpy()

  prompt = collate(rows, [[]] * len(rows), "left", ids["<|endoftext|>"])
  generated = model.generate(
    **prompt,
    max_new_tokens=GENERATED,
    min_new_tokens=GENERATED,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=ids["<|endoftext|>"],
    output_scores=True,
    return_dict_in_generate=True,
  )
  start = prompt["input_ids"].shape[1]
  out["generated"] = generated.sequences[:, start:].numpy().astype(np.int32)
  best = torch.stack(generated.scores).topk(2).values
  info["smallest lead of a greedy token"] = (
    (best[..., 0] - best[..., 1]).min().item()
  )
  resized = preprocessing(info)

  np.savez_compressed(HERE / "qwen2_5_vl.npz", **out)
  np.savez_compressed(HERE / "qwen2_5_vl_resize.npz", **resized)
  (HERE / "qwen2_5_vl.json").write_text(json.dumps(info))
  tokenizer.backend_tokenizer.save(
    str(HERE / "qwen2_5_vl_tokenizer.json"), pretty=False
  )
  print({k: v for k, v in info.items() if isinstance(v, float)})


def preprocessing(info):
  """Sizes into `info`; the bytes of resized pictures, patch by patch."""
  rng, out = np.random.default_rng(2), {}
  sides = [(int(h), int(w)) for h, w in rng.integers(1, 3000, size=(300, 2))]
  sides += [(h, w) for h in (13, 14, 42, 70, 98) for w in (28, 70, 1000, 2800)]
  sides = [s for s in sides if max(s) <= 200 * min(s)]
  info["smart_size"] = [[*s, *smart_resize(*s)] for s in sides]
  processor = Qwen2VLImageProcessor(
    size=LIMITS, do_rescale=False, do_normalize=False
  )
  for i, (height, width) in enumerate(RESIZED):
    waves = np.add.outer(np.arange(height) / 9, np.arange(width) / 7)
    waves = 128 + 90 * np.sin(waves[..., None] + np.arange(3))
    noise = rng.integers(-37, 37, size=waves.shape)
    picture = np.clip(waves + noise, 0, 255).astype(np.uint8)
    batch = processor(torch.from_numpy(picture).permute(2, 0, 1))
    out[f"{i}/picture"] = picture
    pixels = batch["pixel_values"].reshape(-1, 3, 2, 14, 14)[:, :, 0]
    out[f"{i}/patches"] = np.asarray(pixels).astype(np.uint8)
    out[f"{i}/grid"] = np.asarray(batch["image_grid_thw"][0])
  return out


if __name__ == "__main__":
  main()
