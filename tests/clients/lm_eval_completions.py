"""lm-evaluation-harness, `local-completions`: log-likelihood and greedy generation on a small task of our own.

The scores must be those of the same sequences sent one by one, to the last bit: however the harness batches them, and
whatever runs beside them.
"""

import functools
import json
import os
import tempfile
import urllib.request

import lm_eval
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

URL = os.environ["MICROGRANITE_URL"] + "/v1/completions"

QUESTIONS = [
    ("The capital of France is", [" Paris", " purple", " seven"], 0),
    ("Two plus two equals", [" Saturday", " four", " the sea"], 1),
    ("The opposite of hot is", [" cold", " banana", " under"], 0),
    ("Water freezes into", [" music", " ice", " Tuesday"], 1),
    ("A dog says", [" parliament", " woof", " 1997"], 1),
    ("The sun rises in the", [" east", " verb", " spoon"], 0),
    ("Cows give us", [" milk", " algebra", " Norway"], 0),
    ("There are seven days in a", [" cheese", " week", " blue"], 1),
]


def post(**body):
    request = urllib.request.Request(URL, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


@functools.cache
def encode(text):
    """The ids of a text, from the server."""
    echo = post(prompt=text, echo=True, max_tokens=0, return_token_ids=True)
    return tuple(echo["choices"][0]["prompt_token_ids"])


class Tokenizer:
    """The interface that the harness requires."""

    eos_token_id = bos_token_id = 0

    def encode(self, text, **_):
        return list(encode(text))


class Recording(LocalCompletionsAPI):
    """The harness's own class, which also records requests and responses."""

    scored = {}

    def tok_encode(self, string, **_):
        texts = [string] if isinstance(string, str) else string
        ids = [self.tokenizer.encode(text) for text in texts]
        return ids[0] if isinstance(string, str) else ids

    def _loglikelihood_tokens(self, requests, **arguments):
        results = super()._loglikelihood_tokens(requests, **arguments)
        for (_, context, continuation), result in zip(requests, results):
            self.scored[tuple(context), tuple(continuation)] = result
        return results


def evaluate(folder, **settings):
    model = Recording(base_url=URL, model="demo", tokenizer_backend=None, max_length=2048, **settings)
    model.tokenizer, model.tokenized_requests = Tokenizer(), True
    Recording.scored = {}
    manager = TaskManager(include_path=folder, include_defaults=False)
    results = lm_eval.simple_evaluate(model=model, tasks=["small_choice", "small_greedy"], task_manager=manager,
                                      bootstrap_iters=0, log_samples=True)
    texts = [sample["resps"] for sample in results["samples"]["small_greedy"]]
    return results["results"], Recording.scored, texts


with tempfile.TemporaryDirectory() as folder:
    with open(f"{folder}/data.jsonl", "w") as file:
        for question, choices, label in QUESTIONS:
            file.write(json.dumps({"question": question, "choices": choices, "label": label}) + "\n")
    common = f"""
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/data.jsonl}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
target_delimiter: ""
"""
    with open(f"{folder}/choice.yaml", "w") as file:
        file.write(f"task: small_choice\noutput_type: multiple_choice{common}"
                   'doc_to_choice: "{{choices}}"\ndoc_to_target: label\nmetric_list: [{metric: acc}]\n')
    with open(f"{folder}/greedy.yaml", "w") as file:
        file.write(f"task: small_greedy\noutput_type: generate_until{common}"
                   'doc_to_target: "{{choices[label]}}"\ngeneration_kwargs: {until: ["\\n"], max_gen_toks: 8}\n'
                   "metric_list: [{metric: exact_match}]\n")
    runs = [evaluate(folder, batch_size=1), evaluate(folder, batch_size=5), evaluate(folder, num_concurrent=4)]

results, scored, texts = runs[0]
for other in runs[1:]:
    assert other[1] == scored, "log-likelihoods and greedy flags depend on the batch"
    assert other[2] == texts, "greedy answers depend on the batch"
assert len(scored) == 3 * len(QUESTIONS)

# The same sums, computed without the harness, and the resulting accuracy.
right = 0
for question, choices, label in QUESTIONS:
    sums = []
    for choice in choices:
        context = encode(question)
        continuation = encode(question + choice)[len(context) :]
        total, greedy = scored[context, continuation]
        echo = post(prompt=[*context, *continuation], echo=True, max_tokens=0, logprobs=1)["choices"][0]["logprobs"]
        alone = echo["token_logprobs"][len(context):]
        assert sum(alone) == total
        best = [max(top.values()) for top in echo["top_logprobs"][len(context):]]
        assert greedy == (alone == best)
        sums.append(total)
    right += sums.index(max(sums)) == label
accuracy = right / len(QUESTIONS)
assert results["small_choice"]["acc,none"] == accuracy, (results, accuracy)
assert accuracy >= 0.75, "the model knows these"
print(f"lm-eval {lm_eval.__version__} is content: accuracy {accuracy}, {len(scored)} log-likelihoods equal in any batch")
