"""The toy: a transformer of `torch.nn` that reads a question and writes its answer, and an SAE on its last hidden state.

A question goes through an encoder layer, an answer through a decoder layer that looks at it; or both stand in one row and go
through two layers that look backwards (a decoder alone). The SAE stands beside: logits come from the hidden state itself, so
that to take a latent out is to take its decoder vector out of the hidden state.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lib.profiles.untangle import Toy
from lib.studies.untangle.data import PAD


class Sae(nn.Module):
    """Linear, ReLU, Linear, as published: `z = relu(W_enc h + b)`, and `W_dec z + b`."""

    def __init__(self, d_model: int, d_sae: int):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(d_model, d_sae), nn.Linear(d_sae, d_model)

    def encode(self, h: Float[Tensor, "*n d_model"]) -> Float[Tensor, "*n d_sae"]:
        return self.encoder(h).relu()

    def forward(self, h: Float[Tensor, "*n d_model"]) -> tuple[Float[Tensor, "*n d_sae"], Float[Tensor, "*n d_model"]]:
        """Latents, and the hidden state made of them."""
        z = self.encode(h)
        return z, self.decoder(z)


class Transformer(nn.Module):
    """From a question and the answer so far to the logits of the answer's next token, at each of its positions.

    A question has `question` tokens at most, an answer `answer` with its end; both are padded at the end with `PAD`.
    """

    def __init__(self, toy: Toy, tokens: int, question: int, answer: int):
        super().__init__()
        d = toy.d_model
        of_layer = {"d_model": d, "nhead": toy.heads, "dim_feedforward": toy.d_ff, "dropout": 0.0, "batch_first": True}
        self.embed = nn.Embedding(tokens, d)
        if toy.decoder_alone:
            self.place = nn.Embedding(question + answer, d)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(**of_layer) for _ in range(2))
        else:
            self.place, self.place_answer = nn.Embedding(question, d), nn.Embedding(answer, d)
            self.encoder, self.decoder = nn.TransformerEncoderLayer(**of_layer), nn.TransformerDecoderLayer(**of_layer)
        self.output = nn.Linear(d, tokens)
        self.sae = Sae(d, toy.d_sae)
        with torch.no_grad():
            for embedding in (module for module in self.modules() if isinstance(module, nn.Embedding)):
                embedding.weight *= toy.embedding

    def hidden(
        self, question: Int[Tensor, "batch question"], answer: Int[Tensor, "batch pos"]
    ) -> Float[Tensor, "batch pos d_model"]:
        """What the output layer reads at each position of the answer, of which the first token is the `B` that opens it."""
        if not hasattr(self, "encoder"):
            return self._alone(question, answer)
        return self.from_embedded(self.embed(question), answer, _as_bias(question == PAD))

    def from_embedded(
        self, question: Float[Tensor, "batch question d_model"], answer: Int[Tensor, "batch pos"], empty: Tensor | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """The same from a question's embeddings, with a bias of -inf where these are of padding."""
        read = self.encoder(question + self.place.weight[: question.shape[1]], src_key_padding_mask=empty)
        so_far = self.embed(answer) + self.place_answer.weight[: answer.shape[1]]
        return self.decoder(so_far, read, tgt_mask=_causal(answer.shape[1]), memory_key_padding_mask=empty)

    def _alone(self, question: Tensor, answer: Tensor) -> Tensor:
        """The answer follows its question without padding between, so that no token ever looks at any."""
        length = (question != PAD).sum(1, keepdim=True)
        at = length + torch.arange(answer.shape[1])
        row = torch.cat([question, torch.full_like(answer, PAD)], 1).scatter(1, at, answer)
        x = self.embed(row) + self.place.weight[: row.shape[1]]
        for layer in self.layers:
            x = layer(x, src_mask=_causal(row.shape[1]))
        return x.gather(1, at[:, :, None].expand(-1, -1, x.shape[2]))

    def forward(self, question: Tensor, answer: Tensor) -> Float[Tensor, "batch pos tokens"]:
        return self.output(self.hidden(question, answer))


def _as_bias(masked: Bool[Tensor, "..."]) -> Float[Tensor, "..."] | None:
    """0 where attention may look and -inf where not; None where it may look everywhere."""
    return torch.zeros(masked.shape).masked_fill(masked, -torch.inf) if masked.any() else None


def _causal(n: int) -> Float[Tensor, "n n"]:
    return _as_bias(torch.ones(n, n, dtype=torch.bool).triu(1)) if n > 1 else torch.zeros(1, 1)
