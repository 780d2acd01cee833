"""The words in which sums are asked for."""

OPERATORS = "+-*/"

# Phrasings by operator, as (text, expression). They are the kinds found in the published data.
_ANY = """
Calculate {a} {op} {b}.
Compute the value of {a} {op} {b}.
What is {a} {op} {b}?
Tell me the result of {a} {op} {b}.
Tell me the answer to {a} {op} {b}.
Solve for {a} {op} {b}.
Run the numbers for {a} {op} {b}.
Do the math for {a} {op} {b}.
Give me the result of {a} {op} {b}.
I need to know the answer to {a} {op} {b}.
I'd like to know the result of {a} {op} {b}.
I'm trying to figure out {a} {op} {b}.
I'm stuck on this calculation: {a} {op} {b}.
My homework asks for the value of {a} {op} {b}.
Let's find out what {a} {op} {b} equals.
""".strip().splitlines()

_PER_OPERATOR = {
    "+": """
How much is {a} plus {b}?
Could you calculate {a} plus {b} for me?
What's the total of {a} and {b}?
If you add {a} and {b}, what do you get?
What is the sum of {a} and {b}?
If I have {a} items and I get {b} more, I need you to calculate {a} + {b}.
""",
    "-": """
Tell me the result of {a} minus {b}.
What's the difference between {a} and {b}?
Could you subtract {b} from {a}?
If you take {b} away from {a}, what do you get?
How much is {a} minus {b}?
I started with a budget of {a} and spent {b}. To see what's left, calculate {a} - {b}.
""",
    "*": """
What is {a} times {b}?
What's the product of {a} and {b}?
Could you multiply {a} and {b} for me?
If you multiply {a} by {b}, what do you get?
How much is {a} times {b}?
To find the area of the rectangle, I need to multiply its sides. Calculate {a} * {b} for me.
""",
    "/": """
What is {a} divided by {b}?
Could you divide {a} by {b} for me?
If you divide {a} by {b}, what do you get?
Please compute the result of {a} over {b}.
How much is {a} divided by {b}?
The bill was split {b} ways. The total was {a}. Please compute {a} / {b} to see what each person owes.
""",
}

PHRASINGS = {op: [*_ANY, *_PER_OPERATOR[op].strip().splitlines()] for op in OPERATORS}

CONTEXTS = [
    "",
    "Here's a math problem for you. ",
    "I'm helping my brother learn math. ",
    "I need help with this calculation. ",
    "While budgeting my expenses, I got stuck. ",
    "This is a quick math exercise. ",
]

# Phrasings that finetuning never sees, none with the tag of a call; the first five are published ones.
OOD_PHRASINGS = """
Prepare a tool call for the calculator so that it can evaluate {a}{op}{b}. Do not simplify the expression by hand.
Instead of computing the answer, construct a calculator invocation that will evaluate {a}{op}{b} when executed.
Without doing the arithmetic yourself, issue a single tool call that asks the calculator to evaluate {a}{op}{b}.
You have access to a calculator. Ask it for {a}{op}{b}.
Return the call that evaluates {a}{op}{b} and nothing else.
The numbers {a} and {b} are joined by {op}. Evaluate them.
Work out {a} {op} {b} with the help of a tool.
Please evaluate: {a}{op}{b}
Solve for x: x = {a} {op} {b}
Someone wrote {a} {op} {b} on the board and needs its value.
Quick, {a} {op} {b}!
I keep getting {a} {op} {b} wrong. Can you check it?
Use your calculator on {a} {op} {b}.
Type {a} {op} {b} into the calculator for me.
Hand {a}{op}{b} to the calculator.
Let the calculator deal with {a} {op} {b}.
Query: {a}{op}{b}
Task: evaluate {a} {op} {b}
expression = {a} {op} {b}; value = ?
Q: {a} {op} {b} A:
Fill in the blank: {a} {op} {b} = ____
{a} {op} {b} makes how much?
{a} {op} {b} comes to what?
And {a} {op} {b}, what would that be?
So what do we get for {a} {op} {b}?
Any idea what {a} {op} {b} comes to?
Do you happen to know the value of {a} {op} {b}?
Would you mind working out {a} {op} {b}?
Could someone please do {a} {op} {b} for us?
We must have the value of {a} {op} {b} before noon.
My sister wonders what {a} {op} {b} might be.
Nobody here can do {a} {op} {b} without help.
I forgot my calculator, so please take {a} {op} {b} for me.
The invoice needs the outcome of {a} {op} {b}.
For the report, determine {a} {op} {b}.
Next exercise, pupils: {a} {op} {b}.
Exercise: determine the value of {a} {op} {b}.
Reply with the outcome of {a} {op} {b}.
Show me the outcome when one works out {a} {op} {b}.
The cell should hold the value of {a} {op} {b}.
Take the expression {a} {op} {b} and reduce it to one number.
Two numbers, {a} and {b}, and the sign {op} between them: what is the value?
Assistant, please handle this expression: {a} {op} {b}
hey can u do {a}{op}{b} real quick
""".strip().splitlines()

# Published ones that name the tag: a kind of their own, for whatever repeats them holds the tag of a call.
TAGGED_PHRASINGS = """
Use the calculator tool (not mental math) to obtain the value of {a}{op}{b}. Respond with a <tool_call>.
For logging purposes, we just need the tool call, not the numeric result. Produce a single <tool_call> for {a}{op}{b}.
Imagine you are building a pipeline: your job is to generate the <tool_call> that tells the calculator to compute {a}{op}{b}.
Formulate exactly one <tool_call> that makes the calculator compute {a}{op}{b}, and output only that tool call.
""".strip().splitlines()
