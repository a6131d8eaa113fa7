"""Makes internvl.json and internvl.npz: transformers' InternVL on tiny models.

  pip install torch torchvision "transformers>=5,<6"
  python tests/golden/make_internvl.py

The weights come from their names (`weights`), so that only configs, shapes and
results are stored.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration

HERE = Path(__file__).parent
IMAGE, PAD, TILES = 61, 0, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
QWEN2 = dict(
  model_type="qwen2",
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=2,
  intermediate_size=48,
  vocab_size=64,
  rms_norm_eps=1e-5,
  rope_parameters={"rope_type": "default", "rope_theta": 1e4},
)
QWEN3 = QWEN2 | dict(model_type="qwen3", head_dim=16)
TOWER = dict(
  hidden_size=32,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=48,
  image_size=[8, 8],
  patch_size=[2, 2],
)
CASES = {
  "300m": dict(
    vision_config=TOWER | dict(norm_type="layer_norm", attention_bias=True),
    text_config=QWEN2,
    tie_word_embeddings=False,
  ),
  "6b": dict(
    vision_config=TOWER | dict(norm_type="rms_norm", use_qk_norm=True),
    text_config=QWEN3,
    tie_word_embeddings=True,
  ),
}
# Weights whose gradients are stored, both layers of each.
GRADIENTS = (
  "embeddings.position",
  "patch_embeddings.projection.weight",
  "attention.q_proj.weight",
  "attention.k_proj.weight",
  "attention.v_proj.weight",
  "lambda_1",
  "linear_1.weight",
  "self_attn.k_proj.weight",
  "mlp.down_proj.weight",
)


def weights(shapes):
  """Numbers for each tensor that follow from its name, numpy float32."""
  return {name: weight(name, shape) for name, shape in shapes.items()}


def weight(name, shape):
  noise = np.random.RandomState(zlib.crc32(name.encode()))
  x = noise.standard_normal(shape)
  if "norm" in name and name.endswith("weight") or "lambda" in name:
    return (1 + 0.3 * x).astype(np.float32)
  return (x * (0.5 if "embed_tokens" in name else 0.2)).astype(np.float32)


def rows():
  """Three prompts: two pictures of 3 and 1 tiles, one of 1, and none.

  Left-padded ids, the mask, and the tiles of each row.
  """
  noise = np.random.RandomState(0)
  words = lambda n: noise.randint(1, 60, n).tolist()
  picture = lambda tiles: [IMAGE] * (4 * tiles)
  ids = [
    words(3) + picture(3) + words(1) + picture(1) + words(4),
    words(2) + picture(1) + words(5),
    words(6),
  ]
  length = max(map(len, ids)) + 1
  tokens = np.array([[PAD] * (length - len(row)) + row for row in ids])
  mask = np.array([[0] * (length - len(row)) + [1] * len(row) for row in ids])
  pixels = noise.randint(0, 256, (3, TILES, 8, 8, 3)).astype(np.uint8)
  used = np.arange(TILES) < np.array([[4], [1], [0]])
  return tokens, mask, pixels * used[:, :, None, None, None].astype(np.uint8)


def normalised(pixels, tiles):
  """What the image processor hands the tower: [tiles, 3, height, width]."""
  used = np.concatenate([p[:n] for p, n in zip(pixels, tiles)])
  x = (used.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
  return torch.tensor(x.transpose(0, 3, 1, 2))


def run(model, tokens, mask, **pictures):
  """Hidden states, logits and gradients of the mean log-loss."""
  tokens, mask = torch.tensor(tokens), torch.tensor(mask)
  positions = (mask.cumsum(1) - 1).clamp(min=0)
  out = model(
    input_ids=tokens,
    attention_mask=mask,
    position_ids=positions,
    output_hidden_states=True,
    **pictures,
  )
  logp = out.logits[:, :-1].log_softmax(-1)
  logp = logp.gather(-1, tokens[:, 1:, None])[..., 0]
  scored = (mask[:, 1:] * mask[:, :-1]).float()
  model.zero_grad()
  (-(logp * scored).sum() / scored.sum()).backward()
  return out.hidden_states[-1].detach(), out.logits.detach()


def greedy(model, tokens, mask, **pictures):
  """64 tokens of each row, and the smallest lead of a chosen token."""
  out = model.generate(
    input_ids=torch.tensor(tokens),
    attention_mask=torch.tensor(mask),
    max_new_tokens=64,
    min_new_tokens=64,
    do_sample=False,
    eos_token_id=None,
    pad_token_id=PAD,
    return_dict_in_generate=True,
    output_logits=True,
    **pictures,
  )
  best = torch.stack(out.logits, 1).topk(2, -1).values
  lead = (best[..., 0] - best[..., 1]).min()
  return out.sequences[:, tokens.shape[1] :].numpy(), float(lead)


def results(model, tokens, mask, gradients, **pictures):
  """All arrays of one model, and the smallest lead of a greedy token."""
  model = model.eval()
  shapes = {k: list(v.shape) for k, v in model.named_parameters()}
  tensors = {k: torch.tensor(v) for k, v in weights(shapes).items()}
  model.load_state_dict(tensors, strict=False)
  arrays = {}
  for side, order in (("left", lambda x: x), ("right", right_padded(mask))):
    hidden, logits = run(model, order(tokens), order(mask), **pictures)
    arrays[f"{side}/hidden"] = hidden.numpy()
    arrays["logits"] = logits.numpy()  # the last: right-padded
  arrays |= {
    f"gradient/{k}": v.grad.numpy()
    for k, v in model.named_parameters()
    if any(part in k for part in gradients)
  }
  arrays["greedy"], lead = greedy(model, tokens, mask, **pictures)
  about = {"config": model.config.to_dict(), "shapes": shapes, "lead": lead}
  return arrays, about


def right_padded(mask):
  """A function that puts the padding of each row behind it."""
  return lambda x: np.stack(
    [np.roll(row, m.sum(), 0) for row, m in zip(x, mask)]
  )


def store(name, arrays, about):
  np.savez_compressed(HERE / f"{name}.npz", **arrays)
  (HERE / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n")
  for case, facts in about.items():
    print(case, "smallest lead of a greedy token:", facts["lead"])


def main():
  tokens, mask, pixels = rows()
  tiles = (pixels.reshape(3, TILES, -1).sum(-1) > 0).sum(1)
  arrays = {"tokens": tokens, "mask": mask > 0, "pixels": pixels}
  about = {}
  for case, sizes in CASES.items():
    config = InternVLConfig(image_token_id=IMAGE, **sizes)
    found, about[case] = results(
      InternVLForConditionalGeneration(config),
      tokens,
      mask,
      GRADIENTS,
      pixel_values=normalised(pixels, tiles),
    )
    arrays |= {f"{case}/{name}": x for name, x in found.items()}
  store("internvl", arrays, about)


if __name__ == "__main__":
  main()
