"""Each named set, read from a few rows in its publisher's columns."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from poise.data import load
from poise.data.sources import GROUPS, SOURCES


def test_a_pku_row_gives_a_comparison_for_each_criterion_and_a_label_for_each_response(data_root, write_rows, pku_row):
    categories = {
        "response_0_harm_category": {"Drugs": False},
        "response_1_harm_category": {"Theft": True, "Drugs": False},
    }
    severity = {"response_0_severity_level": 0, "response_1_severity_level": 2, "prompt_source": "Alpaca"}
    write_rows("pku_saferlhf/train.jsonl", [pku_row | categories | severity])

    dataset = load("pku-saferlhf")

    helpful, safe = dataset.comparisons
    assert (helpful.criterion, helpful.winner, helpful.safe) == ("helpful", 1, None)
    assert (safe.criterion, safe.winner, safe.safe, safe.categories) == ("safe", 0, (True, False), ((), ("Theft",)))
    assert [(label.safe, label.categories) for label in dataset.labels] == [(True, ()), (False, ("Theft",))]
    tags = dataset.prompts[0].tags
    assert tags["severity_levels"] == (0, 2)
    assert tags["prompt_source"] == "Alpaca"
    assert tags["upstream_split"] == "train"
    assert "split" not in tags
    assert safe.origin.location == tags["line"] == "pku_saferlhf/train.jsonl:1"
    assert dataset.provenance["non_commercial"] is True


def test_harm_categories_of_pku_may_be_a_list(data_root, write_rows, pku_row):
    write_rows("pku_saferlhf/a.jsonl", [pku_row | {"response_1_harm_category": ["Theft"]}])
    assert load("pku-saferlhf").labels[1].categories == ("Theft",)


def test_pku_rows_read_the_same_from_an_array_a_table_and_parquet(tmp_path, pku_row):
    from pyarrow import Table, parquet

    (tmp_path / "a.json").write_text(json.dumps([pku_row]))
    (tmp_path / "a.csv").write_text(",".join(pku_row) + "\n" + ",".join(str(cell) for cell in pku_row.values()) + "\n")
    parquet.write_table(Table.from_pylist([pku_row | {"better_response_id": None}, pku_row]), tmp_path / "a.parquet")

    assert [each.winner for each in load(tmp_path / "a.json").comparisons] == [1, 0]
    assert [each.winner for each in load(tmp_path / "a.csv").comparisons] == [1, 0]
    assert [each.criterion for each in load(tmp_path / "a.parquet").comparisons] == ["safe", "helpful", "safe"]


def test_one_response_in_many_pairs_is_labelled_once(data_root, write_rows, pku_row):
    write_rows(
        "pku_saferlhf/a.jsonl", [pku_row, pku_row | {"response_1": "Use a credit card.", "is_response_1_safe": False}]
    )
    assert [label.response[:3] for label in load("pku-saferlhf").labels] == ["Ask", "Rak", "Use"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"better_response_id": 2}, "better_response_id should be less than or equal to 1, got 2"),
        ({"is_response_0_safe": "yes"}, "is_response_0_safe should be a valid boolean, got 'yes'"),
        ({"response_1": None}, "column 'response_1' is missing"),
        ({"prompt": "  "}, "prompt is empty, got '  '"),
    ],
)
def test_a_bad_pku_row_says_which_column_is_wrong(data_root, write_rows, pku_row, change, reason):
    path = write_rows("pku_saferlhf/a.jsonl", [pku_row, pku_row | change])
    dataset = load("pku-saferlhf")
    assert [(row.path, row.line, row.reason) for row in dataset.bad_rows] == [(str(path), 2, reason)]
    assert len(dataset.comparisons) == 2


def test_a_safety_pair_is_flagged_by_its_order(data_root, write_rows):
    write_rows(
        "pku_saferlhf_safety_pairs/a.jsonl",
        [{"prompt": "p", "response": ["mild", "wild"]}, {"prompt": "p", "response": ["x"]}],
    )
    dataset = load("pku-safety-pairs")
    (pair,) = dataset.comparisons
    assert (pair.criterion, pair.responses, pair.winner, pair.safe) == ("safe", ("mild", "wild"), 0, (True, False))
    assert [(label.response, label.safe) for label in dataset.labels] == [("mild", True), ("wild", False)]
    assert "at least 2 items" in dataset.bad_rows[0].reason


def hh(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[index % 2]}: {turn}" for index, turn in enumerate(turns))


def test_hh_rlhf_has_a_criterion_for_each_part_and_a_prompt_of_all_earlier_turns(data_root, write_rows):
    row = {"chosen": hh("Hi", "Hello", "Bread?", "Bake it."), "rejected": hh("Hi", "Hello", "Bread?", "No.")}
    write_rows("hh_rlhf/helpful-base.test.jsonl", [row])
    write_rows("hh_rlhf/harmless-base/train.jsonl", [row | {"rejected": hh("Hi", "Hm", "Bread?", "No.")}, row])
    write_rows("hh_rlhf/helpful-online.test.jsonl", [row])

    dataset = load("hh-rlhf")

    assert [each.criterion for each in dataset.comparisons] == ["helpful", "safe"]
    pair = dataset.comparisons[0]
    assert [message["role"] for message in pair.prompt.messages] == ["user", "assistant", "user"]
    assert (pair.responses, pair.winner, pair.safe) == (("Bake it.", "No."), 0, None)
    assert "earlier turns differ" in dataset.bad_rows[0].reason
    assert len(load("hh-rlhf:helpful").comparisons) == len(load("hh-rlhf:helpful-online").comparisons) == 1
    assert load("hh-rlhf:harmless").comparisons[0].criterion == "safe"


def test_instructions_of_every_family_become_demonstrations(data_root, write_rows):
    write_rows("instructions/alpaca.jsonl", [{"instruction": "Add", "input": "1 2", "output": "3", "text": "template"}])
    write_rows("instructions/dolly.jsonl", [{"instruction": "Who?", "context": "", "response": "Me", "category": "qa"}])
    instances = [{"input": "a", "output": "b"}, {"input": "", "output": "c"}]
    write_rows("instructions/self_instruct_seed.jsonl", [{"id": "t1", "instruction": "Do", "instances": instances}])

    dataset = load("instructions")

    assert [(row.prompt.text, row.response) for row in dataset.demonstrations] == [
        ("Add\n\n1 2", "3"),
        ("Who?", "Me"),
        ("Do\n\na", "b"),
        ("Do", "c"),
    ]
    assert "text" not in dataset.demonstrations[0].prompt.tags
    assert dataset.demonstrations[1].prompt.tags["category"] == "qa"
    assert dataset.provenance["licence"] == "CC-BY-NC-4.0; CC-BY-SA-3.0; Apache-2.0"
    assert dataset.provenance["non_commercial"] is True
    assert load("instructions:dolly").provenance["non_commercial"] is False


def test_safety_tuned_llamas_gives_safe_answers_and_prompts_of_known_kind(data_root, write_rows):
    write_rows("safety_tuned_llamas/safety_only.jsonl", [{"instruction": "Insult me", "input": "", "output": "No."}])
    write_rows(
        "safety_tuned_llamas/I-CoNa.json", [{"instructions": ["one", "two"], "tags": ["t1", "t2"], "inputs": []}]
    )
    write_rows("safety_tuned_llamas/I-PhysicalSafetySafe.json", [{"instructions": ["three"]}])
    write_rows("safety_tuned_llamas/Q-Harm.json", [{"instructions": ["four"]}])

    dataset = load("safety-tuned-llamas")

    assert [(row.prompt.text, row.response) for row in dataset.demonstrations] == [("Insult me", "No.")]
    assert [(label.response, label.safe) for label in dataset.labels] == [("No.", True)]
    kinds = {prompt.text: prompt.tags.get("kind") for prompt in dataset.prompts}
    assert kinds == {"one": "harmful", "two": "harmful", "three": "benign", "four": None, "Insult me": None}
    assert dataset.prompts[0].tags["topic"] == "t1"


def xstest_row(kind: str, final: str, completion: str) -> dict[str, str]:
    verdicts = {"annotation_1": final, "annotation_2": final, "agreement": "TRUE", "final_label": final}
    return {"id": "v2-1", "type": kind, "prompt": f"prompt of {kind}", "completion": completion} | verdicts


def test_xstest_labels_contrast_prompts_only_and_keeps_all_completions_on_request(data_root, write_rows):
    verdicts = ("1_full_compliance", "2_full_refusal", "3_partial_refusal")
    rows = [xstest_row(kind, final, final) for kind in ("homonyms", "contrast_homonyms") for final in verdicts]
    write_rows("xstest_annotations/xstest_v2_completions_gpt4.jsonl", rows)

    dataset = load("xstest")

    assert [(label.response, label.safe) for label in dataset.labels] == [(verdicts[0], False), (verdicts[1], True)]
    assert dataset.labels[0].origin.kind == "human"
    assert [prompt.tags["kind"] for prompt in dataset.prompts] == ["look_alike", "harmful"]
    assert dataset.demonstrations == ()

    everything = load("xstest:completions")
    assert len(everything.demonstrations) == 6
    assert everything.labels == load("xstest:completions").labels
    tags = everything.demonstrations[5].prompt.tags
    judged = {"type": "contrast_homonyms", "annotation_1": verdicts[2], "annotation_2": verdicts[2], "model": "gpt4"}
    assert judged.items() <= tags.items()
    assert {row.weight for row in everything.demonstrations} == {0.0}


def test_prompt_files_tell_harmful_from_look_alike(data_root):
    folder = data_root / "redteam_prompts"
    folder.mkdir()
    (folder / "xstest_prompts.csv").write_text(
        "id,prompt,type,label,focus,note\n1,Kill a process?,homonyms,safe,,\n2,Kill a man?,contrast_homonyms,unsafe,,\n"
    )
    (folder / "advbench_harmful_behaviors.csv").write_text('goal,target\nDo harm,"Sure, here is"\n')
    (folder / "other.csv").write_text("column\n1\n")

    assert [prompt.tags["kind"] for prompt in load("xstest-prompts").prompts] == ["look_alike", "harmful"]
    (prompt,) = load("advbench").prompts
    assert (prompt.text, prompt.tags["kind"], prompt.tags["target"]) == ("Do harm", "harmful", "Sure, here is")


def test_the_starter_reader_compares_responses_that_differ_and_labels_those_that_are_clear(tmp_path, write_rows):
    responses = [
        {"text": "Call the landlord.", "help": 6, "harm": 0, "safe": True},
        {"text": "Sure, force it.", "help": 8, "harm": 7, "safe": False},
        {"text": "I won't help.", "help": 1, "harm": 1, "safe": True, "source": "model"},
        {"text": "Sure, locks.", "help": 0, "harm": 4, "safe": True, "source": "model"},
    ]
    row = {"prompt": "Open my neighbour's lock", "kind": "harmful", "category": "theft", "split": "train"}
    write_rows("starter/starter.jsonl", [row | {"responses": responses}])

    dataset = load(tmp_path / "starter")

    ranked = [(each.criterion, each.responses[each.winner]) for each in dataset.comparisons]
    helpful = [text for criterion, text in ranked if criterion == "helpful"]
    assert helpful[:4] == ["Sure, force it.", "Call the landlord.", "Call the landlord.", "Sure, force it."]
    safe = [text for criterion, text in ranked if criterion == "safe"]  # harm 0 and 1 are too close to be ranked
    assert safe == ["Call the landlord.", "Call the landlord.", "I won't help.", "Sure, locks.", "I won't help."]
    flags = [each.safe for each in dataset.comparisons if each.criterion == "safe"]
    assert flags == [(True, False), None, (False, True), None, None]  # harm 4 is ranked, but not flagged
    assert [label.safe for label in dataset.labels] == [True, False, True]
    assert [label.categories for label in dataset.labels] == [(), ("theft",), ()]
    expected = {"kind": "harmful", "categories": ("theft",), "split": "train", "source": "starter"}
    assert expected.items() <= dataset.prompts[0].tags.items()


def test_a_starter_row_with_points_out_of_range_is_a_bad_row(tmp_path, write_rows):
    response = {"text": "a", "help": 11, "harm": 0, "safe": True}
    row = {"prompt": "p", "kind": "benign", "split": "train", "responses": [response, response | {"help": 3}]}
    good = row | {"prompt": "q", "responses": [response | {"help": 9}, response | {"text": "b", "help": 3}]}
    write_rows("starter/starter.jsonl", [row, good])
    (bad,) = load(tmp_path / "starter").bad_rows
    assert bad.line == 1 and "help" in bad.reason


def test_the_starter_set_of_the_package_is_whole():
    dataset = load("starter")
    assert dataset.bad_rows == ()
    assert {prompt.tags["kind"] for prompt in dataset.prompts} == {"harmful", "benign", "look_alike"}
    assert {each.criterion for each in dataset.comparisons} == {"helpful", "safe"}
    assert {prompt.id for prompt in dataset.prompts} >= {each.prompt.id for each in dataset.comparisons}


def test_labelled_texts_are_prompts_with_a_tag(data_root, write_rows):
    write_rows("movie_reviews_sample/a.jsonl", [{"file": "x", "label": "pos", "text": "fine ."}])
    write_rows("sentence_polarity/a.jsonl", [{"label": "neg", "text": "dull ."}, {"label": "meh", "text": "so so ."}])
    flags = {"severe_toxic": "0", "obscene": "1", "threat": "0", "insult": "1", "identity_hate": "0"}
    write_rows("jigsaw_toxicity_sample/a.jsonl", [{"comment_text": "You!", "toxic": "1"} | flags])
    assert [p.tags["positive"] for p in load("movie-reviews").prompts] == [True]
    sentences = load("sentence-polarity")
    assert [p.tags["positive"] for p in sentences.prompts] == [False]
    assert "should be 'pos' or 'neg'" in sentences.bad_rows[0].reason
    (comment,) = load("jigsaw").prompts
    assert (comment.tags["toxic"], comment.tags["categories"]) == (True, ("obscene", "insult"))


def test_halves_of_sentences_are_prompts_and_labels(data_root, write_rows):
    half = {"text": "They said that", "toxicity": 0.7}
    rows = [
        {"prompt": half, "continuation": {"text": " all is well", "toxicity": 0.1}, "challenging": True},
        {"prompt": half | {"text": "Nobody"}, "continuation": {"text": " knows", "toxicity": None}},
        {"prompt": half | {"toxicity": 1.7}, "continuation": {"text": " x", "toxicity": 0.9}},
    ]
    write_rows("realtoxicityprompts_sample/a.jsonl", rows)
    dataset = load("realtoxicityprompts")
    assert [p.tags["toxicity"] for p in dataset.prompts] == [0.7, 0.7]
    ((label),) = dataset.labels
    assert (label.response, label.safe, label.origin.name) == (" all is well", True, "Perspective")
    assert "less than or equal to 1" in dataset.bad_rows[0].reason


def test_rated_responses_keep_their_ratings(data_root, write_rows):
    texts = [("sad film", 0.1), (". The end", 1.9)]
    write_rows("odpo_rewards/imdb-a.jsonl", [{"prompt": "A", "text": text, "reward": reward} for text, reward in texts])
    found = load("odpo-sentiment").demonstrations
    assert [(row.response, row.prompt.tags["reward"], row.weight) for row in found] == [
        (" sad film", 0.1, 0.0),
        (". The end", 1.9, 0.0),
    ]
    rows = [
        {"post": "Long.", "responses": [" a", "b", "c"], "rewards": [3, 6, 6]},
        {"post": "p", "responses": ["a"], "rewards": []},
    ]
    write_rows("tldr_human_ratings/a.jsonl", rows)
    dataset = load("tldr-ratings")
    assert [(c.responses, c.winner, c.margin) for c in dataset.comparisons] == [
        (("a", "b"), 1, 3.0),
        (("a", "c"), 1, 3.0),
    ]
    assert "1 responses and 0 rewards" in dataset.bad_rows[0].reason


def test_every_source_names_its_reader_and_its_terms():
    from importlib import import_module

    for source in SOURCES.values():
        module, function = source.parser.split(".")
        assert callable(getattr(import_module(f"poise.data.datasets.{module}"), function))
        assert source.summary and source.licence.name
        assert source.licence.non_commercial == ("NC" in source.licence.name)
    assert {part for parts in GROUPS.values() for part in parts} <= set(SOURCES)


def test_the_starter_set_covers_what_its_page_says():
    dataset = load("starter")
    kinds = Counter(prompt.tags["kind"] for prompt in dataset.prompts)
    assert kinds == {"harmful": 448, "benign": 210, "look_alike": 170}
    harms = Counter(c for p in dataset.prompts if p.tags["kind"] == "harmful" for c in p.tags["categories"])
    assert len(harms) == 14 and set(harms.values()) == {32}
    both = {each.responses for each in dataset.comparisons if each.criterion == "helpful"} & {
        each.responses for each in dataset.comparisons if each.criterion == "safe"
    }
    assert len(both) >= 400
    assert Counter(p.tags["split"] for p in dataset.prompts) == {"train": 426, "judge": 284, "test": 118}
    assert Counter(each.origin.name for each in dataset.labels) == {"starter:author": 3277, "starter:model": 1149}
