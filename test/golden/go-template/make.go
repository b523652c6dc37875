// Makes cases.json: what Go's own text/template prints for the templates and values here. Run: go run make.go > cases.json
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"text/template"
)

type arguments map[string]any

func (a arguments) String() string { b, _ := json.Marshal(a); return string(b) }

type property struct {
	Type        string         `json:"type"`
	Description string         `json:"description,omitempty"`
	Enum        []any          `json:"enum,omitempty"`
}
type parameters struct {
	Type       string              `json:"type"`
	Required   []string            `json:"required,omitempty"`
	Properties map[string]property `json:"properties"`
}
type function struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Parameters  parameters `json:"parameters"`
}
type tool struct {
	Type     string   `json:"type"`
	Function function `json:"function"`
}

func (t tool) String() string { b, _ := json.Marshal(t); return string(b) }

type tools []tool

func (t tools) String() string { b, _ := json.Marshal(t); return string(b) }

type callFunction struct {
	Name      string    `json:"name"`
	Arguments arguments `json:"arguments"`
}
type toolCall struct {
	ID       string       `json:"id"`
	Function callFunction `json:"function"`
}
type message struct {
	Role      string     `json:"role"`
	Content   string     `json:"content"`
	ToolCalls []toolCall `json:"tool_calls,omitempty"`
}

var someTools = tools{
	{"function", function{"get_weather", "Weather of a <place> & time", parameters{"object", []string{"city"}, map[string]property{
		"city": {Type: "string", Description: "The city"}, "unit": {Type: "string", Enum: []any{"C", "F"}}}}}},
	{"function", function{"now", "The time", parameters{"object", nil, map[string]property{}}}},
}
var talk = []*message{
	{Role: "system", Content: "Be brief."},
	{Role: "user", Content: "Weather in Oslo & Rome?"},
	{Role: "assistant", ToolCalls: []toolCall{{"c1", callFunction{"get_weather", arguments{"unit": "C", "city": "Oslo <NO>", "days": 3, "deep": map[string]any{"b": true, "a": nil}}}}}},
	{Role: "tool", Content: "-3"},
	{Role: "assistant", Content: "Cold."},
	{Role: "user", Content: "Thanks — \"bye\""},
}

var templates = []string{
	"{{ .System }}|{{ .Nothing }}",
	"{{- if .System }}  <s>{{ .System }}</s>  {{- end }}\n\n  {{- range .Messages }}\n[{{ .Role }}] {{ .Content }}\n{{- end }}",
	"{{ range $i, $m := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}{{ $i }}{{ if $last }}!{{ else if eq $m.Role \"user\" }}u{{ else }}-{{ end }}{{ end }}",
	"{{ $system := \"\" }}{{ range .Messages }}{{ if eq .Role \"system\" }}{{ $system = .Content }}{{ end }}{{ end }}<{{ $system }}>",
	"{{ if and .Tools (gt (len .Messages) 2) }}{{ range .Tools }}{{ . }}\n{{ end }}{{ end }}",
	"{{ json .Tools }}\n{{ .Tools }}",
	"{{ range .Messages }}{{ range .ToolCalls }}{{ json .Function.Arguments }} {{ .Function.Arguments }} {{ .Function.Name }} {{ .ID }}{{ end }}{{ end }}",
	"{{ range .Tools }}{{ .Function.Name }}({{ range $k, $v := .Function.Parameters.Properties }}{{ $k }}: {{ $v.Type }}{{ if $v.Enum }}{{ $v.Enum }}{{ end }}, {{ end }}) {{ range .Function.Parameters.Required }}*{{ . }}{{ end }};{{ end }}",
	"{{ range $m := .Messages }}{{ with $m.ToolCalls }}{{ len . }} calls{{ else }}none{{ end }},{{ end }}",
	"{{ (index .Messages 1).Content }} {{ len (index .Messages 0).Content }}",
	"{{ or .Nothing .System \"x\" }} {{ and .System 1 }} {{ not .System }} {{ .Nothing }}",
	"{{ printf \"%s=%d %v %q%%\" .System 7 true \"a\\\"b\" }} {{ print 1 2 \"a\" \"b\" 3 }} {{ println \"x\" 1 }}",
	"{{ range .Messages }}{{ if eq .Role \"tool\" }}{{ break }}{{ end }}{{ if eq .Role \"system\" }}{{ continue }}{{ end }}{{ .Role }} {{ end }}",
	"{{ define \"turn\" }}<{{ .Role }}>{{ .Content }}{{ end }}{{ range .Messages }}{{ template \"turn\" . }}{{ end }}",
	"{{/* a comment */}}a {{- /* trimmed */ -}} b {{ `raw \\n {{` }} {{ \"tab\\t\\u00e9\" }}",
	"{{ if eq .System \"no\" \"Be brief.\" }}one of{{ end }} {{ ne .System \"x\" }} {{ lt 1 2 }} {{ ge 2 2 }} {{ le \"a\" \"b\" }}",
	"{{ $e := slice .Messages 0 0 }}{{ range $e }}x{{ else }}empty{{ end }} {{ len $e }} {{ if $e }}y{{ else }}n{{ end }}",
	"{{ $a := 1 }}{{ if true }}{{ $a := 2 }}{{ $a }}{{ end }}{{ $a }}{{ if true }}{{ $a = 3 }}{{ end }}{{ $a }}",
	"{{ \"piped\" | printf \"%s %s\" \"first\" }} {{ .System | len }} {{ (len .System) }}",
	"a\n{{- \"b\" -}}\n c {{ \"d\" }} \n{{ \"e\" -}}   \n\nf",
	"{{ range $i, $_ := .Messages }}{{ if $i }}, {{ end }}{{ $i }}{{ end }}",
	"{{ slice .System 0 2 }} {{ slice .System 3 }} {{ index .System 0 }}",
	"{{ json .System }} {{ json 1.5 }} {{ json true }} {{ json .Nothing }} {{ json (slice .Tools 1 1) }}",
	"{{ with $x := .System }}{{ $x }}{{ . }}{{ end }}{{ with .Nothing }}no{{ end }}",
}

type testCase struct {
	Template string `json:"template"`
	Text     string `json:"text"`
}

func main() {
	functions := template.FuncMap{"json": func(v any) string { b, _ := json.Marshal(v); return string(b) }}
	data := map[string]any{"System": "Be brief.", "Messages": talk, "Tools": someTools}
	var cases []testCase
	for _, source := range templates {
		t, err := template.New("").Option("missingkey=zero").Funcs(functions).Parse(source)
		if err != nil {
			fmt.Fprintln(os.Stderr, source, err)
			continue
		}
		var out bytes.Buffer
		if err := t.Execute(&out, data); err != nil {
			fmt.Fprintln(os.Stderr, source, err)
			continue
		}
		cases = append(cases, testCase{source, out.String()})
	}
	b, _ := json.MarshalIndent(map[string]any{"messages": talk, "tools": someTools, "cases": cases}, "", " ")
	fmt.Println(string(b))
}
