"""The grammar of a tool call: `<tool_call>calculator(1+2)</tool_call>`, or what a profile's `[tool.grammar]` says.

A call is `open before argument after close`. Model output is hostile text, so nothing here evaluates code,
and an argument has at most 200 characters. Special tokens that a text ends with (`<eos>`, `<end_of_turn>`,
`<|im_end|>`, ...) are no part of it.
"""

import re
from bisect import bisect_left
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lib.texts.calculator import MAX_CHARACTERS, is_expression, value_of

Tag = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]
"""One line that neither begins nor ends with white space."""


_SPECIAL = re.compile(
    r"(?:</?(?:s|eos|bos|pad|unk|sep|mask|end_of_turn|start_of_turn|end_of_text|eot|eod)>"
    r"|<\|[\w-]{1,32}\|>|<｜[\w▁-]{1,32}｜>|\[(?:PAD|SEP|EOS)\])\Z",
    re.IGNORECASE,
)
_LONGEST = 40  # characters of a special token, at most


def without_special(text: str) -> str:
    """A text without the special tokens that it ends with, and without white space after them."""
    while match := _SPECIAL.search((end := text.rstrip())[-_LONGEST:]):
        text = end[: -len(match[0])]
    return text


class Tool(BaseModel):
    """How a tool is called; what is left out is the calculator's."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    open: Tag = "<tool_call>"
    close: Tag = "</tool_call>"
    before: str = "calculator("
    """What stands between the opening tag and the argument; may be empty, as `after` may."""
    after: str = ")"
    argument: Literal["arithmetic", "text"] = "arithmetic"
    """`arithmetic`: an expression, right where its value is the target's, exactly. `text`: anything but nothing, without the
    tags, right where it is the target's, white space at its ends aside."""

    def call(self, argument: str) -> str:
        """The call with an argument, as prompts' targets have it."""
        return f"{self.open}{self.before}{argument}{self.after}{self.close}"

    def argument_of(self, text: str) -> str | None:
        """What the tool is asked when `text` is one call in the strict grammar, else `None`.

        Strict: nothing but white space around the call and special tokens after it, one call, and an argument of its kind
        (the value of an expression may be undefined, as in `1/0`).
        """
        text, head, tail = without_special(text).strip(), self.open + self.before, self.after + self.close
        if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
            return None
        argument = text[len(head) : len(text) - len(tail)]
        return argument if self._allowed(argument) else None

    def _allowed(self, argument: str) -> bool:
        """Whether an argument is of the tool's kind."""
        if self.argument == "arithmetic":
            return is_expression(argument)
        tagged = self.open in argument or self.close in argument
        return bool(argument.strip()) and len(argument) <= MAX_CHARACTERS and not tagged

    def asked(self, text: str) -> str | None:
        """The argument of the first call anywhere in a text, as the published study finds it; `None` where there is none.

        White space may stand inside the tags, as much as there is. A call that is begun and not rightly closed is passed
        over; one that is closed counts, whatever it asks.
        """
        after = rf"{re.escape(self.after)}\s*" if self.after else ""  # an argument without an end of its own is stripped later
        ends = list(re.finditer(after + re.escape(self.close), text))
        starts = [end.start() for end in ends]
        for begun in re.finditer(rf"{re.escape(self.open)}\s*{re.escape(self.before)}", text):
            if (next_end := bisect_left(starts, begun.end())) == len(ends):
                return None
            argument = text[begun.end() : starts[next_end]]
            if argument and (self._allowed(argument) or not self.after or self.after not in argument):
                return argument
        return None

    def worth(self, argument: str | None) -> Fraction | str | None:
        """What two arguments must have in common to ask the same: an expression's value, or the text; `None` for neither."""
        if argument is None or not self._allowed(argument := argument.strip()):
            return None
        return value_of(argument) if self.argument == "arithmetic" else argument

    def called(self, text: str) -> bool:
        """Whether the text begins a call anywhere."""
        return self.open in text

    def well_formed(self, text: str) -> bool:
        """Whether a call is begun and closed after it, whatever stands between."""
        return self.close in text.partition(self.open)[2]

    def right(self, text: str, target: str) -> bool | None:
        """Whether the first call in `text` asks what that of `target` asks; `None` where the target asks nothing of worth.

        That is what the published study counts: a word before or after the call does not matter.
        """
        wanted = self.worth(self.asked(target))
        return None if wanted is None else self.worth(self.asked(text)) == wanted


CALCULATOR = Tool()
