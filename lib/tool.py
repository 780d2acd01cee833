"""The grammar of a tool call: `<tool_call>calculator(1+2)</tool_call>`, or what a profile's `[tool]` table says instead.

A call is `open before argument after close`. Model output is hostile text, so nothing here evaluates code
and nothing searches with a pattern: strings are compared, and an argument has at most 200 characters.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lib.calculator import MAX_CHARACTERS, is_expression, value_of

Tag = Annotated[str, Field(pattern=r"^\S(.*\S)?$")]
"""One line that neither begins nor ends with white space."""


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

        Strict: nothing but white space around the call, one call, and an argument of its kind (the value of an
        expression may be undefined, as in `1/0`).
        """
        text, head, tail = text.strip(), self.open + self.before, self.after + self.close
        if not (text.startswith(head) and text.endswith(tail) and len(text) >= len(head) + len(tail)):
            return None
        argument = text[len(head) : len(text) - len(tail)]
        if self.argument == "arithmetic":
            allowed = is_expression(argument)
        else:
            tagged = self.open in argument or self.close in argument
            allowed = bool(argument.strip()) and len(argument) <= MAX_CHARACTERS and not tagged
        return argument if allowed else None

    def called(self, text: str) -> bool:
        """Whether the text begins a call anywhere."""
        return self.open in text

    def well_formed(self, text: str) -> bool:
        """Whether a call is begun and closed after it, whatever stands between."""
        return self.close in text.partition(self.open)[2]

    def right(self, text: str, target: str) -> bool:
        """Whether `text` is a strict call that asks the same as the call `target`: the same value, or the same text."""
        arguments = self.argument_of(text), self.argument_of(target)
        if None in arguments:
            return False
        asked, wanted = map(value_of if self.argument == "arithmetic" else str.strip, arguments)
        return asked is not None and asked == wanted


CALCULATOR = Tool()
