"""Equality with transformers on the styles that published models use, and what a hostile template gets."""

import pytest

from datong.engine.chat_template import ChatTemplate
from datong.errors import InvalidRequest, TemplateError

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen's style: tools as JSON lines, a backward loop, a namespace, reasoning cut out of earlier turns, tool answers
TOOLS = """
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(
        message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}{%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning) %}
            {{- '<|im_start|>assistant\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {%- for call in message.tool_calls or [] %}
            {%- if call.function %}{%- set call = call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role != "system" or not loop.first %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
# Llama 3's style: header tokens, trim, bos only once, a date, a macro, loop controls, tojson with an indent
HEADERS = """{{- bos_token }}
{%- macro head(role) %}{{ '<|start_header_id|>' + role + '<|end_header_id|>\\n\\n' }}{% endmacro %}
{%- if not date_string is defined %}{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system = "" %}{%- endif %}
{{- head('system') + 'Today Date: ' + date_string + '\\n\\n' }}
{%- for t in tools or [] %}{{ t | tojson(indent=4) + '\\n\\n' }}{%- endfor %}
{{- system + '<|eot_id|>' }}
{%- for message in messages %}
    {%- if message.role == 'skip' %}{% continue %}{% endif %}
    {%- if message.content is iterable and message.content is not string %}
        {{- head(message.role) }}{% for part in message.content %}{{ part.text }}{% endfor %}{{ '<|eot_id|>' }}
    {%- elif message.role == 'stop' %}{% break %}
    {%- elif message.role == 'ipython' %}{{ raise_exception('This model knows no role ipython') }}
    {%- else %}
        {{- head(message['role']) + message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{% generation %}{{- head('assistant') }}{% endgeneration %}{%- endif %}
"""
SPECIALS = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "a <b>城市</b> & 'more'"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}
CHATS = {
    "one": [{"role": "user", "content": " Hi 你好 🎉 "}],
    "system": [{"role": "system", "content": "Be <kind> & brief."}, {"role": "user", "content": "Hi"}],
    "turns": [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n2"},
        {"role": "user", "content": "and 2 + 2?"},
    ],
    "reasoning": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning": "because"},
    ],
    "tools": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"a": 1}}}]},
        {"role": "tool", "content": "sunny"},
    ],
}


@pytest.fixture(scope="module")
def theirs():
    utils = pytest.importorskip("transformers.utils.chat_template_utils")

    def render(source, messages, tools, prompt, **extra):
        texts, _ = utils.render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=prompt, **SPECIALS, **extra
        )
        return texts[0]

    return render


@pytest.mark.parametrize("tools", [None, [TOOL, TOOL]], ids=["plain", "tools"])
@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("source", [SMOLLM2, TOOLS, HEADERS], ids=["smollm2", "qwen", "llama3"])
def test_equals_transformers(theirs, source, chat, tools):
    template = ChatTemplate(source, SPECIALS)
    for prompt in (False, True):
        ours = template.render(CHATS[chat], tools=tools, add_generation_prompt=prompt)
        assert ours == theirs(source, CHATS[chat], tools, prompt)


def test_further_variables_and_parts_of_content_and_loop_controls(theirs):
    chat = [
        {"role": r, "content": [{"type": "text", "text": "a"}] if r == "user" else r}
        for r in ("user", "skip", "x", "stop", "z")
    ]
    assert ChatTemplate(HEADERS, SPECIALS).render(chat, date_string="D") == theirs(
        HEADERS, chat, None, True, date_string="D"
    )
    thinking = ChatTemplate(TOOLS).render(CHATS["one"], enable_thinking=False)
    assert thinking.endswith("<think>\n\n</think>\n\n") and thinking == theirs(
        TOOLS, CHATS["one"], None, True, enable_thinking=False
    )


def render(source: str, **extra) -> str:
    return ChatTemplate(source).render([{"role": "user", "content": "x"}], **extra)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' ~ 1 ~ none ~ [1, 'b'] }}", "a1None[1, 'b']"),
        ("{% for a, b in {'x': 1}.items() %}{{ loop.length }}{{ a }}{{ b }}{{ loop.last }}{% endfor %}", "1x1True"),
        ("{% for c in [1, [2, [3]]] recursive %}{{ loop(c) if c is iterable else c }}{% endfor %}", "123"),
        ("{% for i in range(3) if i != 1 %}{{ i }}{{ loop.length }}{% else %}none{% endfor %}", "0222"),
        ("{% for i in nothing %}x{% else %}none{% endfor %}", "none"),
        ("{{ [3, 1] | sort | map('string') | join('-') }} {{ 'a,b'.split(',') | last }}", "1-3 b"),
        ("{{ '%s=%d' % ('a', 5) }} {{ '{:>4}|{x}'.format('b', x=1) }} {{ '%05.1f' | format(2) }}", "a=5    b|1 002.0"),
        ("{{ 'ab' | replace('a', 'x') | upper | center(6) }}.", "  XB  ."),
        ("{{ {'a': '<é>'} | tojson }} {{ [1] | tojson(indent=2) }}", '{"a": "<é>"} [\n  1\n]'),
        ("{% set x %}in {{ 1 + 1 }}{% endset %}{{ x }} {{ (1, 2) + (3,) }} {{ [0] * 3 }}", "in 2 (1, 2, 3) [0, 0, 0]"),
        ("{{ undefined_name }}{{ messages[0].nothing }}|{{ messages[9] is defined }}", "|False"),
        ("{{ 'tool' in messages[0].role }} {{ 1 < 2 < 3 }} {{ 'abc'[1:] }}", "False True bc"),
        ("{{ dict(a=1) }} {{ dict.fromkeys(['k']) }} {{ messages[0].get('zz', 4) }}", "{'a': 1} {'k': None} 4"),
        ("{{ messages[0]['_k'] }}", "v"),
    ],
)  # fmt: skip
def test_the_checked_forms_mean_the_same_as_jinja(source, text):
    import jinja2

    messages = [{"role": "user", "content": "x", "_k": "v"}]
    assert ChatTemplate(source).render(messages) == text
    plain = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
    plain.filters["tojson"] = ChatTemplate("")._template.environment.filters["tojson"].__wrapped__
    assert plain.from_string(source).render(messages=messages) == text


LOOP = "{% set ns = namespace(x='a') %}{% for i in range(200) %}{% set ns.x = EXPR %}{% endfor %}"
HOSTILE = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loop in a filter": "{% for a in range(99999) %}{{ range(99999) | list | length }}{% endfor %}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "repeat": "{{ 'a' * 10 ** 10 }}",
    "constant repeat": "{{ 'a' * 10000000000 }}",
    "list repeat": "{{ [1] * 10000000000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "power tower": "{% set ns = namespace(x=9) %}{% for i in range(60) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "doubling +": LOOP.replace("EXPR", "ns.x + ns.x"),
    "doubling ~": LOOP.replace("EXPR", "ns.x ~ ns.x"),
    "doubling %": LOOP.replace("EXPR", "'%s%s' % (ns.x, ns.x)"),
    "doubling format": LOOP.replace("EXPR", "'{0}{0}'.format(ns.x)"),
    "doubling replace": LOOP.replace("EXPR", "ns.x.replace('a', 'aa')"),
    "doubling join": LOOP.replace("EXPR", "[ns.x, ns.x] | join"),
    "doubling join method": LOOP.replace("EXPR", "ns.x.join(['', '', ''])"),
    "doubling list": LOOP.replace("EXPR", "[ns.x, ns.x]") + "{{ ns.x }}",
    "doubling tuple": LOOP.replace("EXPR", "(ns.x, ns.x)") + "{{ {ns.x: 1} }}",
    "doubling dict": LOOP.replace("EXPR", "{'a': ns.x, 'b': ns.x}") + "{{ ns.x | tojson }}",
    "doubling views": LOOP.replace("EXPR", "{'a': ns.x, 'b': ns.x}.items()") + "{{ ns.x }}",
    "doubling namespaces": LOOP.replace("EXPR", "namespace(a=ns.x, b=ns.x)") + "{{ ns.x }}",
    "doubling namespaces in lists": LOOP.replace("EXPR", "[namespace(a=ns.x), namespace(a=ns.x)]") + "{{ ns.x }}",
    "doubling blocks": "{% set x %}aaaaaaaaaa{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "doubling macro": "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(x='a') %}"
    "{% for i in range(99) %}{% set ns.x = d(ns.x) %}{% endfor %}",
    "namespace in itself": "{% set ns = namespace() %}{% set ns.x = ns %}{{ [ns] }}",
    "constant text": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "constant text in a block": "{% set y %}{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}{% endset %}",
    "center": "{{ 'a' | center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(9999) }}",
    "indent": "{{ ('\n' * 100000) | indent(9999) }}",
    "indent with text": "{{ ('\n' * 100000) | indent('x' * 9999) }}",
    "wordwrap": "{{ ('x ' * 1000000) | wordwrap(1, wrapstring='y' * 1000) }}",
    "tojson indent": "{{ [1] | tojson(indent=10000000000) }}",
    "tojson separators": "{{ range(99999) | list | tojson(separators=('x' * 9999, ':')) }}",
    "percent width": "{{ '%10000000000d' % 1 }}",
    "percent star": "{{ '%*d' % (10000000000, 1) }}",
    "percent name": "{{ '%(a)10000000000d' % {'a': 1} }}",
    "format width": "{{ '{:>10000000000}'.format(1) }}",
    "format nested width": "{{ '{:>{w}}'.format(1, w=10000000000) }}",
    "format filter": "{{ '%10000000000d' | format(1) }}",
    "replace": "{{ ('a' * 1000000) | replace('a', 'b' * 1000000) }}",
    "replace nothing": "{{ ('a' * 1000000).replace('', 'b' * 1000000) }}",
    "join": "{{ range(99999) | join('b' * 1000000) }}",
    "join text": "{{ ('a' * 1000000) | join('b' * 1000) }}",
    "join method": "{{ ('b' * 1000000).join('a' * 99999) }}",
    "sum": "{{ ([[1]] * 100000) | sum(start=[]) }}",
    "slice": "{{ [1] | slice(10000000000) | list }}",
    "round": "{{ 1.5 | round(10000000) }}",
    "strftime": "{{ strftime_now('%1000000000d') }}",
    "comparison": "{% set a = [1] * 1000000 %}{% set b = [1] * 1000000 %}" + "{% if a == b %}{% endif %}" * 99,
    "search": "{% set a = 'x' * 10000000 %}" + "{% if 'y' in a %}{% endif %}" * 99,
    "slices": "{% set a = [1] * 1000000 %}" + "{% if a[1:] %}{% endif %}" * 99,
    "test": "{% set a = [1] * 1000000 %}" + "{% if a is eq(a[1:]) %}{% endif %}" * 99,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_never_ends_or_blows_up_is_stopped(name):
    with pytest.raises(TemplateError, match=r"\[chat template\] it (asked for|calls itself)") as e:
        render(HOSTILE[name])
    assert e.value.hint


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ messages[0]._private }}",
        "{{ '' | attr('__class__') }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format('') }}",
        "{{ '{0.__class__}'.format_map({}) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ namespace.__init__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{% set ns = namespace() %}{% set ns._x = 1 %}",
        "{{ namespace(_x=1) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ ''.maketrans({}) }}",
        "{{ (1).to_bytes(5, 'big') }}",
        "{{ 'a'.encode() }}",
        "{{ self.__class__ }}",
        "{% macro m() %}{% endmacro %}{{ m.__code__ }}",
    ],
)
def test_pythons_insides_are_out_of_reach(source):
    with pytest.raises(TemplateError, match="it reached for what it may not"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
        "{{ 1 // 0 }}",
        "{{ undefined.x }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_whatever_else_fails_is_a_template_error_too(source):
    with pytest.raises(TemplateError, match=r"\[chat template\] "):
        render(source)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("a\n{% for %}", r"line 2 is no Jinja"),
        ("{{ x | nosuchfilter }}", r"line 1 is no Jinja: No filter named"),
        ("{{ " + "(" * 5000 + ")" * 5000 + " }}", "nested too deeply|no Jinja"),
        ("{% for a in b %}" * 40 + "{% endfor %}" * 40, "nested too deeply"),
        ("x" * 200_000, "at most 131072 characters"),
    ],
)
def test_what_is_no_template_is_refused_with_the_line(source, text):
    with pytest.raises(TemplateError, match=text):
        ChatTemplate(source)


def test_a_templates_own_refusal_is_passed_on():
    with pytest.raises(TemplateError, match="it refused the messages: This model knows no role ipython"):
        ChatTemplate(HEADERS).render([{"role": "ipython", "content": "x"}])


@pytest.mark.parametrize(
    "messages", [[], "hello", [{"content": "x"}], ["x"], [{"role": "user", "content": object()}], None]
)
def test_messages_that_are_none_are_refused(messages):
    with pytest.raises(InvalidRequest, match=r"\[chat\] "):
        ChatTemplate(SMOLLM2).render(messages)


def test_a_long_honest_conversation_fits_the_limits():
    chat = CHATS["turns"] * 1300
    assert len(ChatTemplate(TOOLS, SPECIALS).render(chat, tools=[TOOL])) > 100_000


def test_the_callers_messages_are_not_changed():
    chat = [{"role": "user", "content": "x", "reasoning": "r"}]
    ChatTemplate(SMOLLM2).render(chat)
    assert chat == [{"role": "user", "content": "x", "reasoning": "r"}]
