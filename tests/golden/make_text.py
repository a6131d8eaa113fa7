"""Makes text.json and text.npz: transformers' decoders on tiny models.

pip install torch torchvision "transformers>=5,<6"
python tests/golden/make_text.py
"""

from make_internvl import PAD, QWEN2, QWEN3, results, rows, store
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA = QWEN2 | dict(model_type="llama", num_key_value_heads=1)
DECODERS = {"qwen2": QWEN2, "qwen3": QWEN3, "llama": LLAMA}
GRADIENTS = (
  "embed_tokens.weight",
  "self_attn.q_proj.weight",
  "self_attn.v_proj.weight",
  "input_layernorm.weight",
  "mlp.gate_proj.weight",
)


def main():
  tokens, mask, _ = rows()
  arrays, about = {"tokens": tokens, "mask": mask > 0}, {}
  for name, sizes in DECODERS.items():
    for tied in (False, True):
      case = name + "-tied" * tied
      config = AutoConfig.for_model(
        **sizes, tie_word_embeddings=tied, pad_token_id=PAD
      )
      found, about[case] = results(
        AutoModelForCausalLM.from_config(config), tokens, mask, GRADIENTS
      )
      arrays |= {f"{case}/{key}": x for key, x in found.items()}
  store("text", arrays, about)


if __name__ == "__main__":
  main()
