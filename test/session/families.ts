// Chat templates of the families whose way of calling tools is recognised: written for these tests, short, in each family's
// format: turns, where tools are described, calls and results of earlier turns, reasoning.

export interface Family {
  /** As the table calls it. */
  readonly dialect: string;
  readonly template: string;
  /** Control tokens of its vocabulary, the last one ends an answer. */
  readonly controls: readonly string[];
  /** How the tools stand in the prompt. */
  readonly toolsShown: string;
  /** A call as the prompt has it and the model writes it. */
  readonly callShown: string;
  readonly resultShown: string;
  /** It can reason. */
  readonly thinks?: boolean;
  /** It can make several calls an answer. */
  readonly parallel: boolean;
}

/** Templates lose the line feed after a tag. */
const kept = (template: string) => template.replaceAll("%}\n", "%}{{ '\\n' }}");
const list = "{% for c in m.tool_calls %}";
const opening = (text: string) => `{% if add_generation_prompt %}${text}{% endif %}`;

const chatml = (middle: string, begin = "") =>
  "{% if tools %}<|im_start|>system\n# Tools\n<tools>{% for t in tools %}\n{{ t | tojson }}{% endfor %}\n</tools>" +
  "<|im_end|>\n{% endif %}{% for m in messages %}<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n" +
  "{% if m.role == 'tool' %}<tool_response>\n{{ m.content }}\n</tool_response>{% else %}{{ m.content or '' }}{% endif %}" +
  `{% if m.tool_calls %}${middle}{% endif %}<|im_end|>\n{% endfor %}${opening(`<|im_start|>assistant\n${begin}`)}`;

const hermesCalls =
  `${list}\n<tool_call>\n{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n` +
  "</tool_call>{% endfor %}";

const chatmlTokens = ["<|im_start|>", "<|im_end|>"];
const hermesShown = {
  toolsShown: '<tools>\n{"type": "function", "function": {"name": "weather"',
  callShown: '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
  resultShown: "<tool_response>\n3 degrees\n</tool_response>",
  parallel: true,
};

const written: readonly (readonly [name: string, family: Family])[] = [
  [
    "llama 3",
    {
      dialect: "llama 3",
      template:
        "{% if tools %}<|start_header_id|>user<|end_header_id|>\n\nFunctions, to be called as " +
        '{"name": function name, "parameters": dictionary of arguments}:\n' +
        "{% for t in tools %}{{ t | tojson(indent=4) }}\n\n{% endfor %}<|eot_id|>{% endif %}" +
        "{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}<|end_header_id|>\n\n" +
        '{% if m.tool_calls %}{"name": "{{ m.tool_calls[0].function.name }}", "parameters": ' +
        "{{ m.tool_calls[0].function.arguments | tojson }}}{% else %}{{ m.content }}{% endif %}<|eot_id|>{% endfor %}" +
        opening("<|start_header_id|>assistant<|end_header_id|>\n\n"),
      controls: ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
      toolsShown: '"name": "weather"',
      callShown: '{"name": "weather", "parameters": {"city": "Oslo"}}',
      resultShown: "ipython<|end_header_id|>\n\n3 degrees",
      parallel: false,
    },
  ],
  ["qwen 2.5", { dialect: "hermes", template: chatml(hermesCalls), controls: chatmlTokens, ...hermesShown }],
  [
    "qwen 3",
    {
      dialect: "hermes",
      template: chatml(
        hermesCalls,
        "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}",
      ),
      controls: ["<tool_call>", "</tool_call>", "<think>", "</think>", ...chatmlTokens],
      thinks: true,
      ...hermesShown,
    },
  ],
  [
    "mistral",
    {
      dialect: "mistral",
      template:
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{% if tools and loop.first %}[AVAILABLE_TOOLS]" +
        "{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}" +
        `[TOOL_CALLS][${list}{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}` +
        "{{ ', ' if not loop.last }}{% endfor %}]{{ eos_token }}{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}" +
        "[/TOOL_RESULTS]{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
      controls: ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[INST]", "[/INST]", "[TOOL_CALLS]", "</s>"],
      toolsShown: '[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "weather"',
      callShown: '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Oslo"}}]',
      resultShown: "[TOOL_RESULTS]3 degrees[/TOOL_RESULTS]",
      parallel: true,
    },
  ],
  [
    "mistral, later",
    {
      dialect: "mistral (v11)",
      template:
        "{% if tools %}[AVAILABLE_TOOLS]{{ tools | tojson }}[/AVAILABLE_TOOLS]{% endif %}{% for m in messages %}" +
        "{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% elif m.tool_calls %}" +
        `{% if m.thinking %}[THINK]{{ m.thinking }}[/THINK]{% endif %}${list}[TOOL_CALLS]{{ c.function.name }}[ARGS]{{ c.function.arguments | tojson }}{% endfor %}{{ eos_token }}` +
        "{% elif m.role == 'tool' %}[TOOL_RESULTS]{{ m.content }}[/TOOL_RESULTS]" +
        "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
      controls: ["[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[INST]", "[/INST]", "[TOOL_CALLS]", "[ARGS]"].concat([
        "[THINK]",
        "[/THINK]",
        "</s>",
      ]),
      toolsShown: '[AVAILABLE_TOOLS][{"type": "function", "function": {"name": "weather"',
      callShown: '[TOOL_CALLS]weather[ARGS]{"city": "Oslo"}',
      resultShown: "[TOOL_RESULTS]3 degrees[/TOOL_RESULTS]",
      thinks: true,
      parallel: true,
    },
  ],
  [
    "gemma 3 (no tools of its own)",
    {
      dialect: "described",
      template:
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}" +
        "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}" +
        "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}" +
        "{{ raise_exception('Roles must take turns') }}{% endif %}<start_of_turn>" +
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ first if loop.first }}{{ m.content | trim }}<end_of_turn>\n" +
        `{% endfor %}${opening("<start_of_turn>model\n")}`,
      controls: ["<start_of_turn>", "<end_of_turn>"],
      toolsShown: '<tools>\n{"type":"function","function":{"name":"weather"',
      callShown: '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>',
      resultShown: "user\n<tool_response>\n3 degrees\n</tool_response>",
      parallel: true,
    },
  ],
  [
    "phi 4 mini",
    {
      dialect: "phi",
      template:
        "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}" +
        "{{ '<|' + m['role'] + '|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}" +
        "{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}" +
        opening("{{ '<|assistant|>' }}"),
      controls: ["<|tool|>", "<|/tool|>", "<|tool_call|>", "<|/tool_call|>", "<|user|>", "<|assistant|>", "<|end|>"],
      toolsShown: '<|tool|>[{"name":"weather"',
      callShown: '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]<|/tool_call|>',
      resultShown: "<|tool|>3 degrees<|end|>",
      parallel: true,
    },
  ],
  ...deepseeks(),
  [
    "gpt-oss",
    {
      dialect: "harmony",
      template:
        "<|start|>system<|message|>Reasoning: {{ reasoning_effort | default('medium') }}<|end|>" +
        "{% if tools %}<|start|>developer<|message|># Tools\n{% for t in tools %}type {{ t.function.name }} = (_: " +
        "{{ t.function.parameters | tojson }}) => any;\n{% endfor %}<|end|>{% endif %}{% for m in messages %}" +
        "{% if m.tool_calls %}<|start|>assistant<|channel|>commentary to=functions.{{ m.tool_calls[0].function.name }} " +
        "<|constrain|>json<|message|>{{ m.tool_calls[0].function.arguments | tojson }}<|call|>" +
        "{% elif m.role == 'tool' %}<|start|>functions to=assistant<|channel|>commentary<|message|>{{ m.content }}<|end|>" +
        "{% elif m.role == 'assistant' %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|end|>" +
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}" +
        opening("<|start|>assistant"),
      controls: ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>"],
      toolsShown: "type weather = (_: ",
      callShown: '<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}',
      resultShown: "<|message|>3 degrees<|end|>",
      thinks: true,
      parallel: false,
    },
  ],
  [
    "granite 3",
    {
      dialect: "granite",
      template:
        "<|start_of_role|>system<|end_of_role|>You are helpful.{% if tools %} Answer with <|tool_call|> and a JSON list of " +
        "tools to call them.{% endif %}{% if thinking %} Think between <think></think>.{% endif %}<|end_of_text|>\n" +
        "{% if tools %}<|start_of_role|>tools<|end_of_role|>{{ tools | tojson(indent=4) }}<|end_of_text|>\n{% endif %}" +
        "{% for m in messages %}{{ '<|start_of_role|>' + m['role'] + '<|end_of_role|>' + m['content'] + '<|end_of_text|>\n' }}" +
        `{% endfor %}${opening("<|start_of_role|>assistant<|end_of_role|>")}`,
      controls: ["<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>", "<|end_of_text|>"],
      toolsShown: '"name": "weather"',
      callShown: '<|tool_call|>[{"name": "weather", "arguments": {"city": "Oslo"}}]',
      resultShown: "tool<|end_of_role|>3 degrees",
      thinks: true,
      parallel: true,
    },
  ],
  [
    "command-r",
    {
      dialect: "command-r",
      template:
        "{% if tools %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{% for t in tools %}def {{ t.function.name }}(): " +
        "{{ t.function.description }}\n{% endfor %}Write 'Action:' and a JSON list of tool_name and parameters" +
        "<|END_OF_TURN_TOKEN|>{% endif %}{% for m in messages %}<|START_OF_TURN_TOKEN|><|{{ m.role | upper }}_TOKEN|>" +
        "{% if m.tool_calls %}Action: ```json\n[" +
        `${list}\n    {\n        "tool_name": "{{ c.function.name }}",\n        "parameters": ` +
        "{{ c.function.arguments | tojson }}\n    }{{ ',' if not loop.last }}{% endfor %}\n]```{% else %}{{ m.content }}" +
        `{% endif %}<|END_OF_TURN_TOKEN|>{% endfor %}${opening("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")}`,
      controls: ["<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"],
      toolsShown: "def weather(): Says",
      callShown:
        'Action: ```json\n[\n    {\n        "tool_name": "weather",\n        "parameters": {"city": "Oslo"}\n    }\n]```',
      resultShown: "<|TOOL_TOKEN|>3 degrees",
      parallel: true,
    },
  ],
  [
    "command-r7b",
    {
      dialect: "command-r7b",
      template:
        "{% if tools %}<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{{ tools | tojson }}<|END_OF_TURN_TOKEN|>{% endif %}" +
        "{% for m in messages %}<|START_OF_TURN_TOKEN|><|{{ m.role | upper }}_TOKEN|>{% if m.tool_calls %}<|START_ACTION|>[" +
        `${list}\n    {"tool_call_id": "{{ loop.index0 }}", "tool_name": "{{ c.function.name }}", "parameters": ` +
        "{{ c.function.arguments | tojson }}}{{ ',' if not loop.last }}{% endfor %}\n]<|END_ACTION|>{% elif m.role == 'assistant' %}" +
        "<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|>{% else %}{{ m.content }}{% endif %}<|END_OF_TURN_TOKEN|>" +
        `{% endfor %}${opening("<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>")}`,
      controls: ["ACTION", "RESPONSE", "THINKING"]
        .flatMap((part) => [`<|START_${part}|>`, `<|END_${part}|>`])
        .concat(["<|START_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"]),
      toolsShown: '{"type": "function", "function": {"name": "weather"',
      callShown:
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "weather", "parameters": {"city": "Oslo"}}\n]<|END_ACTION|>',
      resultShown: "<|TOOL_TOKEN|>3 degrees",
      thinks: true,
      parallel: true,
    },
  ],
];

export const families = written.map(
  ([name, family]) => [name, { ...family, template: kept(family.template) }] as const,
);

function deepseeks(): [string, Family][] {
  const turns = (calls: string) =>
    "{% if tools %}## Tools\n{% for t in tools %}### {{ t.function.name }}\n{{ t.function.parameters | tojson }}\n{% endfor %}" +
    "{% endif %}{% for m in messages %}{% if m.role == 'user' %}<｜User｜>{{ m.content }}{% elif m.tool_calls %}<｜Assistant｜>" +
    `<｜tool▁calls▁begin｜>${calls}<｜tool▁calls▁end｜>{{ eos_token }}{% elif m.role == 'tool' %}` +
    "<｜tool▁output▁begin｜>{{ m.content }}<｜tool▁output▁end｜>{% else %}<｜Assistant｜>{{ m.content }}{{ eos_token }}" +
    "{% endif %}{% endfor %}";
  const marks = ["calls▁begin", "calls▁end", "call▁begin", "call▁end", "sep"].map((part) => `<｜tool▁${part}｜>`);
  const controls = ["<｜User｜>", "<｜Assistant｜>", ...marks, "<think>", "</think>", "<｜end▁of▁sentence｜>"];
  const shared = { controls, toolsShown: "### weather\n", thinks: true, parallel: true };
  const result = "<｜tool▁output▁begin｜>3 degrees<｜tool▁output▁end｜>";
  return [
    [
      "deepseek v3, r1",
      {
        ...shared,
        dialect: "deepseek (v3)",
        template:
          turns(
            `${list}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name }}\n\`\`\`json\n` +
              "{{ c.function.arguments | tojson }}\n```<｜tool▁call▁end｜>{{ '\n' if not loop.last }}{% endfor %}",
          ) + opening("<｜Assistant｜><think>\n"),
        callShown:
          '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{"city": "Oslo"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        resultShown: result,
      },
    ],
    [
      "deepseek v3.1",
      {
        ...shared,
        dialect: "deepseek (v3.1)",
        template:
          turns(
            `${list}<｜tool▁call▁begin｜>{{ c.function.name }}<｜tool▁sep｜>{{ c.function.arguments | tojson }}` +
              "<｜tool▁call▁end｜>{% endfor %}",
          ) + opening("<｜Assistant｜>{% if thinking %}<think>{% else %}</think>{% endif %}"),
        callShown:
          '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Oslo"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        resultShown: result,
      },
    ],
  ];
}
