import math

import pytest
import torch

from lib.measure.lens import decision_by_layer
from lib.model.encoding import tokens
from lib.studies.tool.scores import call_or_copy
from lib.texts.prompts import written


@torch.no_grad()
def test_after_the_last_layer_it_is_the_models_own_and_before_it_is_the_streams(tiny, plain, smoke):
    prompts = written("positive", 3, "test", 0) + written("negative", 3, "test", 0)
    found, cap = decision_by_layer(tiny, prompts, call_or_copy(smoke.tool, tiny, prompts)), plain.config.final_logit_softcapping
    call_id = tiny.tokenizer("<tool_call>", add_special_tokens=False).input_ids[0]
    for row, p in enumerate(prompts):
        q, a = tokens(tiny.tokenizer, p)
        out = plain(torch.tensor([q + a]), output_hidden_states=True)
        uncapped = cap * torch.atanh(out.logits[0, len(q) - 1].double() / cap)
        assert found.loc[row, 1] == pytest.approx((uncapped[call_id] - uncapped[q[1]]).item(), rel=1e-3)
        logits = plain.lm_head(plain.model.norm(out.hidden_states[1][0, len(q) - 1]))
        assert found.loc[row, 0] == pytest.approx((logits[call_id] - logits[q[1]]).item(), rel=1e-3)
        assert not math.isclose(found.loc[row, 0], found.loc[row, 1])
