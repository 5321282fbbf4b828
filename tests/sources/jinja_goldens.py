#!/usr/bin/env python3
"""Renders small templates with Jinja as transformers sets it up, and writes the texts to jinja_goldens.json.

    pip install jinja2==3.1.6
    python3 tests/sources/jinja_goldens.py

Each line is something that a published chat template does. `null` stands for a template that fails.
"""

import json
import pathlib

import jinja2.ext
import jinja2.nodes
import jinja2.sandbox

import chat_goldens

VARIABLES = {
    "text": "  Hello, wörld\nsecond line \n",
    "plain": "a-b-c",
    "empty": "",
    "nothing": None,
    "yes": True,
    "number": 7,
    "share": 2.5,
    "tiny": 1e-07,
    "huge": 1.5e+22,
    "args": {"city": "Paris", "days": 3, "deep": True, "opts": {"a": [1, None, 1e-07]}, "none": None, "step": 1e-07},
    "call": {"function": {"name": "f", "arguments": {"x": [True, 2.0]}}},
    "thought": "<think>\nfirst\n</think>\nsecond</think>third",
    "list": ["x", "y", "z"],
    "map": {"role": "user", "n": 3},
    "parts": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}],
}

EXPRESSIONS = """
nothing is iterable
missing is iterable
text is iterable
list is iterable
map is iterable
number is iterable
nothing is iterable and nothing | length > 0
list is iterable and list | length > 0
text is sequence
list is sequence
map is sequence
number is sequence
nothing is sequence
missing is sequence
parts is string
parts is mapping
map is mapping
yes is number
yes is integer
number is integer
share is float
missing is defined
nothing is none
plain.rsplit('-', 1)
plain.rsplit('-')[0]
plain.rsplit('-', maxsplit=1)[-1]
plain.split('-', 1)
plain.split('-', maxsplit=1) | list
plain.split(sep='-')[1]
text.split()
text.split(None, 1)
text.rsplit(None, 1)
text.rsplit()
' a  b '.split(None, 0)
' a  b '.rsplit(None, 0)
''.split()
''.split(',')
'a,,b'.split(',')
plain.split('')
plain.partition('-')
plain.partition('-')[2]
plain.rpartition('-')[0]
plain.partition('+')
plain.rpartition('+')
plain.removeprefix('a-')
plain.removeprefix('b')
plain.removesuffix('-c')
plain.removesuffix('')
'7'.zfill(3)
'-7'.zfill(4)
'+1234'.zfill(3)
'é'.zfill(3)
'ab'.center(7) ~ '|'
'abc'.center(6, '*')
'abc'.center(7, '*')
'a'.center(4, '*')
'ab'.center(5, '*')
'ab'.ljust(5, '.') ~ '|'
'ab'.rjust(5)
'ab'.center(3, 'xx')
plain.find('-')
plain.find('-', 2)
plain.find('-', -2)
plain.find('c', 0, 2)
plain.rfind('-')
plain.index('b')
plain.index('z')
plain.rindex('-')
plain.count('-')
plain.startswith('a')
plain.startswith(('b', 'a'))
plain.endswith('c')
'aB cD'.swapcase()
'straße'.casefold()
"they're bill's".title()
'hello wORLD'.capitalize()
'12'.isdigit()
'12'.isdecimal()
'a1'.isalnum()
'ab'.isalpha()
' '.isspace()
text.strip()
text.lstrip()
text.rstrip()
plain.strip('ac')
text.splitlines()
'a\\r\\nb\\rc'.splitlines()
'a\\nb'.splitlines(true)
'-'.join(list)
', '.join(map.keys())
plain.replace('-', '+', 1)
plain.upper().lower()
'{} and {}'.format(1, 'two')
'{a}-{b}'.format(a=1, b='x')
'{:>5}|'.format('ab')
'%s' % plain
'%s' % number
'%s is %d' % (plain, number)
'%d%%' % 50
'%5.1f|' % share
'%-6s|' % 'ab'
'%05d' % number
'%(role)s has %(n)d' % map
'%s' % nothing
'%s' % yes
'%s' % list[0]
'%s' % plain.upper()
'%s' % plain | upper
'%s' % map['role'] ~ '!'
'a' ~ '%s' % number ~ 'b'
'%s %s' % ('a', '%s' % 'b')
'%s' % (number + 1)
'%d' % plain
'%s %s' % plain
'%s %s' | format('a', 'b')
number % 4
list.index('y')
list.index('q')
list.count('x')
list.copy()
list.append('q')
list.pop()
map.copy()
map.update({'x': 1})
map.pop('n')
map.setdefault('x', 1)
map.get('role')
map.get('q', 'none')
map.get('q')
map.items() | list
map.keys() | list
map.values() | list
map | items | list
map | dictsort
map | length
list | join(', ')
list | join(d='-')
parts | join(', ', attribute='text')
parts | join('|', 'type')
[1, none, true] | join('-')
'abc' | join('-')
[1, 'a'] | string
list | first ~ list | last
list | reverse | list
list + ['q']
list[::-1]
list[1:]
plain[::2]
plain[-1]
'x' * 3
[1] * 2
'a' in plain
'q' not in list
'role' in map
text | trim
text | upper
plain | title
plain | capitalize
plain | replace('-', '')
'x\\n' | indent(4)
'x' | indent(4)
'a\\nb\\n' | indent(4)
'a\\n\\nb' | indent(2)
'a\\n\\nb' | indent(2, true)
'a\\n\\nb' | indent(2, true, true)
'a\\n\\nb' | indent(width=2, first=true, blank=true)
'a\\nb' | indent('> ')
'a\\r\\nb' | indent(2)
'' | indent(2)
'' | indent(2, true)
map | tojson
map | tojson(indent=2)
list | tojson
text | tojson
yes | tojson
parts | map(attribute='text') | join(' ')
parts | selectattr('type', 'equalto', 'text') | list | length
list | select('equalto', 'x') | list
list | map('upper') | join
list | sort(reverse=true) | join
[3, 1, 2] | sort | join(',')
[1, 2, 3] | sum
list | length
number | string
'7' | int + 1
share | round
share | int
nothing | default('d')
missing | default('d')
empty | default('d', true)
(nothing or 'x')
yes
nothing
share
list
map
(1, 2)
1 if yes else 2
'a' if nothing
[1, 2.0, 'x', none, true]
{'a': 1}.a
namespace(a=1).a
range(3) | list
range(5, 0, -2) | list
loop is defined
2 ** 3
7 // 2
-7 // 2
7 / 2
1 == 1.0
'a' < 'b'
not nothing
'%s' % {'a': 1}
"it's"
'tab\\t'
dict(a=1)
map is sameas map
number is odd
number is divisibleby 7
'abc' | list
'a' | e
'<b>' | escape
'<b>' | safe
list | unique | list
[[1, 2], [3]] | sum(start=[])
list | batch(2) | list
[1, none] | select | list
map | string
list | string
"x" ~ list
"x" ~ map
"x" ~ none
tiny
huge
-tiny
tiny | string
huge | string ~ '!'
[tiny, huge, 1.0]
{'a': tiny, 'b': [huge]}
(tiny, 1)
[tiny] | string
[tiny, 2] | join(', ')
tiny | tojson
args
args | string
args | tojson
args | tojson(ensure_ascii=False)
args | tojson(indent=2)
args | tojson(separators=(',', ':'))
args | tojson(separators=[',', ':'])
args | tojson(sort_keys=true)
args | tojson(indent=4, sort_keys=true, separators=(',', ': '), ensure_ascii=true)
args | tojson | safe
args.items() | list
args | items | list
args.opts | string
1e16 * 1.0
0.1 + 0.2
100.0 * 10
1e-07 is float
none | string
true | string
args.deep | string
args.none | string
args.missing is defined
args.none is none
args.deep is boolean
args.days is number
args.opts is mapping
args.opts.a is sequence and args.opts.a is not mapping
args.city is sequence and args.city is not string
args.city is string
thought.split('</think>')
thought.split('</think>')[-1]
thought.split('</think>')[0].split('<think>')[-1]
thought.split('</think>')[-1].lstrip('\\n')
thought.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n')
thought.split('</think>', 1)[1].strip()
thought.rsplit('</think>', 1)[0]
'</think>' in thought and '<think>' not in empty
thought.startswith('<think>')
'' | default('d', true) | trim | length
(nothing | default('', true)) ~ 'x'
nothing is string
missing is string
missing is sequence and missing is iterable
call.function is defined and call.function.missing is not defined
call['function']['name'] ~ '!'
list[-1:][0]
list[1:-1]
list | length - 1
namespace(a=false).a is false
(1, 2)[0]
'a' if missing else 'b'
not missing
missing or 'd'
list is iterable and list is not mapping and list is not string
parts | selectattr('text', 'defined') | map(attribute='text') | list
parts | rejectattr('type', 'equalto', 'image') | list | length
list | map('string') | list
'a' 'b' ~ 1
'%s' % tiny
"{}".format(tiny)
list | tojson(indent=none)
map | tojson(indent=0)
''|tojson
'é<>&\\'"' | tojson
"\\u2028" | tojson
""".strip().splitlines()

TEMPLATES = [
    "{% for m in parts %}{% generation %}{{ m.text }}{% endgeneration %};{% endfor %}",
    "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc",
    "a {%- generation -%} b {%- endgeneration -%} c",
    "{% generation %}{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}",
    "{% set ns = namespace(n=0) %}{% for m in parts %}{% generation %}{% set ns.n = ns.n + loop.index %}{% endgeneration %}{% endfor %}{{ ns.n }}",
    "{% if nothing is iterable and nothing | length > 0 %}tools{% else %}none{% endif %}",
    "{% set fmt = '%s: %s\\n' % ('a', 'b') %}{{ fmt }}",
    "{% for k, v in map.items() %}{{ '%s=%s' % (k, v) }},{% endfor %}",
    "{% for x in list %}{% if loop.first %}[{% endif %}{{ x }}{% if not loop.last %},{% else %}]{% endif %}{% endfor %}",
    "{% for x in list if x != 'y' %}{{ loop.index }}{{ x }}{% else %}none{% endfor %}",
    "{% for x in [] %}x{% else %}none{% endfor %}",
    "{% macro f(a, b='d') %}{{ a }}{{ b }}{% endmacro %}{{ f('x') }}{{ f('x', b='y') }}",
    "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}inside{% endcall %}",
    "{% filter upper %}abc{% endfilter %}",
    "{% set x %}block {{ number }}{% endset %}{{ x }}",
    "{% raw %}{{ '%s' % x }}{% endraw %}",
    "{# '%s' % x #}a",
    "{% for x in list %}{% if x == 'y' %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in list %}{% if x == 'y' %}{% break %}{% endif %}{{ x }}{% endfor %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}",
    "{% if 'x' in list and not (map.role == 'tool') %}ok{% endif %}",
    "{{ raise_exception('no') }}",
    "  {%- if yes %}\n    a\n  {%- endif %}\n  b\n",
    "{% for x in list -%}\n  {{ x }}\n{%- endfor %}",
    "{{ 'a' if yes else 'b' }}{{ ('%s' % 'c') if yes }}",
    "{% set l = [] %}{% for x in list %}{% set l = l + [x] %}{% endfor %}{{ l | length }}",
    "{% set ns = namespace(l=[]) %}{% for x in list %}{% set ns.l = ns.l + [x] %}{% endfor %}{{ ns.l | join }}",
    "{% set l = [] %}{% set _ = l.append(1) %}",
    "{% do list.append(1) %}",
    "{% with x = 3 %}{{ x }}{% endwith %}",
    "{{ list[5] }}",
    "{{ map.q.r }}",
    "{{ loop }}",
    "{{- '\\n' -}}",
    "{{ \"a\" 'b' }}",
    "{% for row in [[1, 2], [3]] recursive %}{{ row if row is number else loop(row) }}{% endfor %}",
    "{{ strftime_now('%Y-%m-%d') }}",
    # Thinking, as the families of Qwen 3, Nemotron and Granite 4.2 read it.
    "{%- set enable_thinking = enable_thinking if enable_thinking is defined else True %}{{ enable_thinking }}",
    "{%- if not enable_thinking is defined %}{% set enable_thinking = false %}{% endif %}{{ enable_thinking }}",
    "{%- if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{%- endif %}x",
    "{%- set ns = namespace(multi_step_tool=true, last_query_index=parts|length - 1) %}{%- for m in parts[::-1] %}{%- set index = (parts|length - 1) - loop.index0 %}{%- if ns.multi_step_tool and m.type == 'text' and not(m.text.startswith('<tool_response>') and m.text.endswith('</tool_response>')) %}{%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}{%- endif %}{%- endfor %}{{ ns.last_query_index }}",
    "{%- if call.reasoning_content is string %}{{ call.reasoning_content }}{%- else %}{%- if '</think>' in thought %}{%- set r = thought.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}{%- set c = thought.split('</think>')[-1].lstrip('\\n') %}{{ r ~ '|' ~ c }}{%- endif %}{%- endif %}",
    "{%- for m in parts %}{%- if loop.previtem and loop.previtem.type != 'tool' %}<{%- endif %}{{ m.text }}{%- if not loop.last and loop.nextitem.type != 'tool' %}>{%- elif loop.last %}.{%- endif %}{%- endfor %}",
    "{%- for m in parts %}{{ loop.index0 }}{{ loop.revindex }}{{ loop.length }}{{ loop.previtem is defined }}{{ loop.nextitem is defined }};{%- endfor %}",
    # Calls, as they are shown again in the history.
    "{%- for name, value in args|items %}<parameter={{ name }}>\n{%- set value = value | tojson | safe if value is mapping or (value is sequence and value is not string) else value | string %}{{ value }}\n</parameter>\n{%- endfor %}",
    "{%- for name, value in args.items() %}{{- '<parameter=' ~ name ~ '>\n' }}{%- set value = value if value is string else value | tojson %}{{- value ~ '\n' }}{%- endfor %}",
    "{%- if call.function %}{%- set call = call.function %}{%- endif %}{{ call.name }}{%- if call.arguments is string %}{{ call.arguments }}{%- else %}{{ call.arguments | tojson }}{%- endif %}",
    "{%- if tools is defined and tools is not none and tools %}tools{%- else %}no{%- endif %}",
    "{%- if tools is iterable and tools | length > 0 %}tools{%- else %}no{%- endif %}",
    "{%- macro render_extra_keys(d, handled) %}{%- if d is mapping %}{%- for k in d if k not in handled %}{%- if d[k] is mapping or (d[k] is sequence and d[k] is not string) %}<{{ k }}>{{ d[k] | tojson | safe }}</{{ k }}>{%- else %}<{{ k }}>{{ d[k] | string }}</{{ k }}>{%- endif %}{%- endfor %}{%- endif %}{%- endmacro %}{{- render_extra_keys(args, ['city', 'days']) }}",
    "{%- set handled = ['city'] %}{%- for k in args.keys() | reject('in', handled) %}{{ k }};{%- endfor %}",
    # Llama 3, Mistral, Phi, SmolLM.
    "{%- set system = parts[0]['text']|trim %}{%- set rest = parts[1:] %}{{ system }}{{ rest | length }}",
    "{%- if not (parts[0].type == 'text') != (0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}ok",
    "{%- set user = parts | selectattr('type', 'equalto', 'text') | list %}{{ user[-1].text }}{%- set n = namespace(i=0) %}{%- for m in parts %}{%- if not (m.type == 'tool') %}{%- set n.i = n.i + 1 %}{%- endif %}{%- endfor %}{{ n.i }}",
    "{%- set keys = args.items() | selectattr('0', 'in', ['city', 'days']) | list %}{{ keys | length }}",
    "{%- for key, val in args.items() if val is not none %}{{ '\"' + key + '\": ' + (val | tojson) }}{%- if not loop.last %}, {% endif %}{%- endfor %}",
    "{{ '{\"name\": ' ~ '\"' ~ call.function.name ~ '\"' ~ ', \"parameters\": ' }}{{ call.function.arguments | tojson }}{{ '}' }}",
    "{%- set today = strftime_now('%d %b %Y') if strftime_now is defined else '26 Jul 2024' %}{{ today }}",
    "{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}{%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}{{ tools_in_user_message }}",
    "{%- if parts[0].content is string %}s{%- elif parts[0].text is string %}{%- for block in parts if block.type in ['text', 'x'] %}{{ block['text'] }}{%- endfor %}{%- endif %}",
    "{% set x = [] %}{% for m in parts %}{% if x.append(m.text) %}{% endif %}{% endfor %}{{ x }}",
    "{% set x = {} %}{% set _ = x.update({'a': 1}) %}{{ x }}",
]


class Generation(jinja2.ext.Extension):
    """The tag as transformers has it: its body is called like that of a macro."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


def main():
    environment = chat_goldens.environment([Generation])
    goldens = []
    for template in ["{{ " + expression + " }}" for expression in EXPRESSIONS] + TEMPLATES:
        try:
            text = environment.from_string(template).render(**VARIABLES)
        except Exception:
            text = None
        goldens.append({"template": template, "text": text})
    out = pathlib.Path(__file__).with_name("jinja_goldens.json")
    golden = {"now": chat_goldens.NOW.isoformat(), "variables": VARIABLES, "goldens": goldens}
    out.write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
