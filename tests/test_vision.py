"""A picture beside the prompt: read as the model itself reads it, and again when damage has reached the eyes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from helpers import Command, done
from PIL import Image, ImageDraw
from tiny import BYTES, PICTURE_TOKENS, TEXT, VISION, build, tiny_processor, tiny_tokenizer

from runner.decode_batch import BatchShape, ImageEmbeddings, Request
from runner.decode_engine import EngineChoice
from runner.decode_packing import pack_projections
from runner.decode_reference import STEPS
from runner.decode_sampling import Sampling
from runner.decode_scheduler import BatchScheduler
from runner.errors import SetupError
from runner.model_vision import ImageInputs, damages_vision, encode_with_picture, image_inputs_of
from runner.spec_targets import Group, Selection
from runner.target_groups import resolve_targets

GREEDY = Sampling(do_sample=False, temperature=1.0, top_k=0, top_p=1.0)
TEXTS = ("Who?", "What is happening in this picture, and to whom?", "Why")
NEW_TOKENS = 20

WAYS = [("cpu", "plain"), *([("cuda", "graph"), ("cuda", "fused")] if torch.cuda.is_available() else [])]


def picture(colour: str = "navy") -> Image.Image:
    """A disc and a square."""
    image = Image.new("RGB", (60, 40), "white")
    ImageDraw.Draw(image).ellipse((5, 5, 35, 35), fill=colour)
    ImageDraw.Draw(image).rectangle((40, 10, 55, 25), fill="red")
    return image


def gemma3() -> tuple[Any, Any]:
    """Sliding windows, and picture tokens that read each other in both directions."""
    return build("gemma3"), tiny_processor()


def spread(model: Any) -> Any:
    """Random weights under which tokens and pictures make a difference."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=generator) * (0.05 if "embed_tokens" in name else 0.2))
    return model.eval()


def llava() -> tuple[Any, Any]:
    """A CLIP tower before a Llama."""
    vision = transformers.CLIPVisionConfig(**VISION, projection_dim=32)
    text = transformers.LlamaConfig(**TEXT, num_hidden_layers=2)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=BYTES)
    sizes = {"height": 28, "width": 28}
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=sizes)
    tokenizer = tiny_tokenizer()
    processor = transformers.LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=VISION["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template.replace(PICTURE_TOKENS["boi_token"], PICTURE_TOKENS["image_token"]),
    )
    return spread(transformers.LlavaForConditionalGeneration(config)), processor


def vipllava() -> tuple[Any, Any]:
    """Features from several layers of the tower."""
    vision = transformers.CLIPVisionConfig(**VISION | {"num_hidden_layers": 4}, projection_dim=32)
    text = transformers.LlamaConfig(**TEXT, num_hidden_layers=2)
    config = transformers.VipLlavaConfig(
        vision_config=vision, text_config=text, image_token_index=BYTES, vision_feature_layers=[-1, -2, 2]
    )
    return spread(transformers.VipLlavaForConditionalGeneration(config)), llava()[1]


FAMILIES = {"gemma3": gemma3, "llava": llava, "vipllava": vipllava}


class Subject:
    """A small model that sees, on a device."""

    def __init__(self, make: Callable[[], tuple[Any, Any]], device: str = "cpu", engine: Any = "plain") -> None:
        model, self.processor = make()
        self.model = model.to(device).requires_grad_(requires_grad=False)
        pack_projections(self.model)
        self.engine = EngineChoice(engine)

    def image_inputs(self, image: Image.Image) -> ImageInputs:
        """What the model needs to see an image."""
        return image_inputs_of(self.model.config, [encode_with_picture(self.processor, "Who?", image)], "digest")

    def generator(self, image: Image.Image) -> BatchScheduler:
        """A generator that shows an image with every prompt."""
        image_inputs = self.image_inputs(image)
        view = ImageEmbeddings(
            token_id=image_inputs.token_id, features=image_inputs.look(self.model), both_ways=image_inputs.both_ways
        )
        shape = BatchShape(rows=4, prompt_length=120, new_tokens=NEW_TOKENS)
        generator = BatchScheduler(self.model, shape, GREEDY, [2], 0, view)
        generator.use(self.engine)
        return generator

    def questions(self, image: Image.Image) -> list[Request]:
        """The texts with an image, as tokens."""
        encoded = [encode_with_picture(self.processor, text, image) for text in TEXTS]
        return [Request(inputs["input_ids"][0].tolist(), text, 1) for inputs, text in zip(encoded, TEXTS, strict=True)]

    def answer(self, image: Image.Image) -> list[list[int]]:
        """What it says of an image."""
        return [answer.token_ids for answer in self.generator(image).answer(self.questions(image))]

    def reference(self, image: Image.Image) -> list[list[int]]:
        """What `generate` says with the processor's inputs, in one left-padded batch."""
        turns = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for text in TEXTS
        ]
        inputs = self.processor.apply_chat_template(
            turns, tokenize=True, return_dict=True, add_generation_prompt=True, return_tensors="pt", padding=True
        ).to(self.model.device)
        out = self.model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, eos_token_id=2, pad_token_id=0)[
            :, inputs["input_ids"].shape[1] :
        ].tolist()
        return [row[: row.index(2) + 1] if 2 in row else row for row in out]


@pytest.fixture(params=[(kind, *way) for kind in FAMILIES for way in WAYS], ids="-".join)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each family on the CPU and, where there is one, on a GPU."""
    kind, device, engine = request.param
    return Subject(FAMILIES[kind], device, engine)


def test_greedy_equals_generate(subject: Subject) -> None:
    """Features in the place of tokens, masks and positions change nothing of what transformers itself generates."""
    answers = subject.answer(picture())
    assert answers == subject.reference(picture())
    assert sum(len(set(answer)) for answer in answers) > 3 * len(answers)


@pytest.mark.slow
def test_the_picture_matters(subject: Subject) -> None:
    """Another picture, another answer; the same one again, the same; and one that is shown later replaces the first."""
    generator = subject.generator(picture())
    questions = subject.questions(picture())
    first = generator.answer(questions)
    assert generator.answer(questions) == first
    generator.show(subject.image_inputs(picture("yellow")).look(subject.model), "another")
    other = generator.answer(questions)
    assert other != first
    assert [answer.token_ids for answer in other] == subject.answer(picture("yellow"))


def test_the_models_own_way_is_checked(subject: Subject) -> None:
    """Logits as the model's own are fine; another picture, or other masks, as another family may have, are refused."""
    examples = [encode_with_picture(subject.processor, text, picture()) for text in (TEXTS[1], TEXTS[0])]
    questions = [Request(inputs["input_ids"][0].tolist(), "any", 1) for inputs in examples]
    agreement = subject.generator(picture()).check_reference(questions, examples)
    assert agreement.difference < 1e-5
    assert agreement.tokens == 2 * (1 + STEPS)
    with pytest.raises(SetupError, match="does not fit"):
        subject.generator(picture("yellow")).check_reference(questions, examples)


def test_damage_reaches_the_vision_tower_only_if_asked_to() -> None:
    """The built-in groups mean text; `reference_attn`, or a group of one's own, may mean tower and projector."""
    model = build("gemma3")
    for name in ("attn_only", "mlp_only", "embed_only", "all"):
        assert not damages_vision(model, resolve_targets(model, Selection(group=name))), name
    assert damages_vision(model, resolve_targets(model, Selection(group="reference_attn")))
    for pattern in ("*projector*", "*vision*fc1.weight"):
        group = Group(include=(pattern,), tower="vision")
        assert damages_vision(model, resolve_targets(model, Selection(group="own", definition=group))), pattern


@pytest.fixture
def seeing(study: Path, checkpoints: dict[str, Path]) -> Path:
    """The study with the model that sees, and a picture beside the spec."""
    spec = (study / "specs" / "tiny.toml").read_text().replace(str(checkpoints["llama"]), str(checkpoints["gemma3"]))
    spec += """
[image]
enabled = true
path = "scene.png"

[groups.eyes]
include = ["*vision*fc1.weight"]
tower = "vision"
"""
    eyes = '[[sweeps]]\nname = "eyes"\nmethod = "mult_gauss"\ngroup = "eyes"\nlevels = [0.0, 2.0]\n\n[generation]'
    (study / "specs" / "tiny.toml").write_text(spec.replace("[generation]", eyes))
    picture().save(study / "specs" / "scene.png")
    return study


def records_by_condition(folder: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """All records by what they are known by."""
    found = [record for path in folder.glob("outputs_*.json") for record in json.loads(path.read_text())]
    return {(r["param_group_name"], r["std_dev"], r["repeat_index"], r["prompt_text"]): r for r in found}


@pytest.mark.slow
def test_a_run_with_a_picture(seeing: Path, degrade: Command) -> None:
    """Every sweep answers about the picture, damaged eyes see something else, and a resume adds what is missing."""
    done(degrade("--sweep", "eyes", "--sweep", "gauss", "--set", "run.n_rep=1"))
    done(degrade("--sweep", "eyes", "--sweep", "gauss"))
    records = records_by_condition(seeing / "results")
    assert len(records) == 40
    for (_, level, repeat, text), record in records.items():
        assert (record["image_used"], record["image_filename"]) == (True, "scene.png")
        if level == 0:
            assert record["output"] == records["mlp_only", 0.0, repeat, text]["output"]
    outputs = {
        level: [r["output"] for k, r in sorted(records.items()) if k[:2] == ("eyes", level)] for level in (0.0, 2.0)
    }
    assert outputs[0.0] != outputs[2.0]
    done(degrade("--sweep", "eyes", "--sweep", "gauss", "--results", "whole"))
    again = records_by_condition(seeing / "whole")
    assert {key: r["output"] for key, r in again.items()} == {key: r["output"] for key, r in records.items()}
    picture("yellow").save(seeing / "specs" / "scene.png")
    refused = degrade("--sweep", "gauss", "--set", "run.n_rep=3")
    assert refused.returncode == 2
    assert "the picture behind image.path: the file has" in refused.stderr


def test_a_model_that_reads_text_only_is_refused(study: Path, degrade: Command) -> None:
    """Before any weights are loaded, with the key that is wrong."""
    picture().save(study / "specs" / "scene.png")
    refused = degrade("--set", "image.enabled=true", "--set", "image.path='scene.png'")
    assert refused.returncode == 2
    assert "image.enabled: a llama model reads text only" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_dry_run_with_a_picture(seeing: Path, degrade: Command) -> None:
    """The plan counts the picture's tokens, without weights."""
    for weights in seeing.glob("*.safetensors"):
        weights.unlink()
    assert "group eyes: 3 tensors" in done(degrade("--dry-run")).stdout
