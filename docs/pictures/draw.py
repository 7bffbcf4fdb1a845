"""Draw the pictures of the documentation: ``python docs/pictures/draw.py`` writes the SVG files beside it.

What is set in a typewriter's letters is a name of the code.
"""

from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

# Name in a picture -> where the code has it; and the code's DECODINGS.
NAMES = {
    "encode_source": "mist_fairseq.mist.encoder.Encoder",
    "decode_target": "mist_fairseq.mist.encoder.Encoder",
    "length_logits": "mist_fairseq.mist.encoder.Encoder",
    "likeliest_with_scores": "mist_fairseq.mist.heads",
    "SourceState": "mist_fairseq.mist.encoder",
    "mix_source": "mist_fairseq.mist.mixing",
    "glance": "mist_fairseq.mist.glancing",
    "output_layer": "mist_fairseq.mist.encoder.Encoder",
    "token_loss": "mist_fairseq.mist.output_layer",
}
DECODINGS = ["single-pass", "mist", "mask-predict", "mask-repeats"]

INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
SOURCE, TARGET, STATE, HEAD, MIX = "#dbeafe", "#fde8d0", "#e3f4e1", "#f1f0f7", "#fbe0e6"
EDGES = {SOURCE: "#3b76c4", TARGET: "#d07a1c", STATE: "#4a9a45", HEAD: "#7a6fa8", MIX: "#c2506e", PAPER: FAINT}


class Picture:
    """A drawing on a white card, so that it reads on a dark page, too; a unit is a hundredth of an inch."""

    def __init__(self, width: float, height: float):
        self.figure, self.axes = plt.subplots(figsize=(width / 100, height / 100))
        self.figure.subplots_adjust(0, 0, 1, 1)
        self.figure.patch.set_facecolor(PAPER)
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")

    def text(self, x, y, text, size=10, color=INK, code=False, **options):
        """Text around (x, y); *code* is a name of the code."""
        if code and text not in NAMES and text not in DECODINGS:
            raise ValueError(f"{text!r} is not one of NAMES")
        options = {"ha": "center", "va": "center_baseline", **options}
        family = "DejaVu Sans Mono" if code else "DejaVu Sans"
        self.axes.text(x, y, text, size=size, color=color, family=family, linespacing=1.35, **options)

    def box(self, x, y, width, height, text="", fill=PAPER, **options):
        """A box whose upper left corner is (x, y)."""
        style = "round,pad=0,rounding_size=6"
        self.axes.add_patch(
            FancyBboxPatch((x, y), width, height, boxstyle=style, facecolor=fill, edgecolor=EDGES[fill], linewidth=1.2)
        )
        self.text(x + width / 2, y + height / 2, text, **options)

    def tokens(self, x, y, tokens, fill, width=52, height=26):
        """A row of cells, one a token; gives back where it ends."""
        for token in tokens:
            self.axes.add_patch(Rectangle((x, y), width, height, facecolor=fill, edgecolor=EDGES[fill], linewidth=1.0))
            self.text(x + width / 2, y + height / 2, token, size=8.5)
            x += width
        return x

    def arrow(self, *points, color=INK, dashed=False):
        """A line through points, with a head at its end."""
        for start, end in pairwise(points):
            last = end == points[-1]
            self.axes.add_patch(
                FancyArrowPatch(
                    start,
                    end,
                    arrowstyle="-|>" if last else "-",
                    mutation_scale=12,
                    shrinkA=0,
                    shrinkB=0,
                    color=color,
                    linewidth=1.4,
                    linestyle=(0, (4, 2)) if dashed else "-",
                    capstyle="round",
                )
            )

    def save(self, path: Path):
        """Write an SVG that is the same whenever it is drawn."""
        self.figure.savefig(path, facecolor=PAPER, metadata={"Date": None})
        plt.close(self.figure)


def architecture() -> Picture:
    """Generation: source pass, length, target pass, and the loop that mixes the output into the source."""
    p = Picture(1000, 582)
    # source pass
    p.text(245, 24, "source pass: sees the source", size=11, weight="bold", color=EDGES[SOURCE])
    p.box(70, 150, 350, 44, "embeddings", SOURCE)
    p.box(70, 216, 350, 44, "layer 1", SOURCE)
    p.text(245, 273, "⋮", size=13)
    p.box(70, 286, 350, 44, "layer L", SOURCE)
    p.text(245, 132, "encode_source", code=True, size=11, color=EDGES[SOURCE])
    p.tokens(89, 72, ["[CLS]", "how", "can", "i", "learn", "[SEP]"], SOURCE)
    p.text(245, 56, "$X$, with its special tokens", size=9, color=FAINT)
    p.arrow((245, 98), (245, 122))
    p.arrow((245, 194), (245, 216))
    # state
    p.box(462, 206, 112, 134, "", STATE)
    p.text(518, 226, "SourceState", code=True, size=10, color=EDGES[STATE])
    p.text(518, 262, "keys, values\nof every layer", size=9)
    p.text(518, 312, "last hidden\nstates, lengths", size=9)
    p.arrow((420, 238), (462, 238), color=EDGES[STATE])
    p.arrow((420, 308), (462, 308), color=EDGES[STATE])
    # target pass
    p.text(785, 24, "target pass: sees source and target", size=11, weight="bold", color=EDGES[TARGET])
    p.box(620, 150, 330, 44, "embeddings, positions go on after the source", TARGET, size=9.5)
    p.box(620, 216, 330, 44, "layer 1", TARGET)
    p.text(785, 273, "⋮", size=13)
    p.box(620, 286, 330, 44, "layer L", TARGET)
    p.text(785, 132, "decode_target", code=True, size=11, color=EDGES[TARGET])
    p.tokens(629, 72, ["[MASK]"] * 6, TARGET)
    p.text(785, 56, r"$\hat{T}$ masks", size=9, color=FAINT)
    p.arrow((785, 98), (785, 122))
    p.arrow((785, 194), (785, 216))
    p.arrow((574, 238), (620, 238), color=EDGES[STATE])
    p.arrow((574, 308), (620, 308), color=EDGES[STATE])
    # length
    p.box(462, 104, 112, 62, "", HEAD)
    p.text(518, 122, "length_logits", code=True, size=9.5, color=EDGES[HEAD])
    p.text(518, 146, "mean, linear", size=9)
    p.arrow((518, 206), (518, 166), color=EDGES[HEAD])
    p.arrow((518, 104), (518, 85), (629, 85), color=EDGES[HEAD])
    p.text(574, 73, r"$\hat{T}$ = 6", size=9, color=EDGES[HEAD])
    # output
    p.arrow((785, 330), (785, 356))
    p.box(660, 356, 250, 40, "likeliest_with_scores", HEAD, code=True)
    p.arrow((785, 396), (785, 420))
    p.tokens(629, 420, ["what", "is", "the", "best", "way", "[SEP]"], MIX)
    p.text(960, 433, "$Y_p$", size=11, ha="left")
    # mixing
    p.arrow((629, 433), (500, 433), color=EDGES[MIX])
    p.box(370, 413, 130, 40, "mix_source", MIX, code=True)
    p.arrow((370, 433), (30, 433), (30, 85), (89, 85), color=EDGES[MIX], dashed=True)
    p.text(200, 419, "[CLS]  $Y_p$  [SEP]  $X$  [SEP]", size=10, color=EDGES[MIX])
    # which decoding is what
    for i, (name, what) in enumerate(
        (
            ("single-pass", "once from the top to $Y_p$"),
            ("mist", "again along the dashed line, into as many masks: N passes, or until nothing changes"),
            ("mask-predict", "the target pass again, over the same SourceState, with the least certain tokens masked"),
            ("mask-repeats", "likewise, with tokens masked that equal a neighbour"),
        )
    ):
        p.text(140, 490 + 22 * i, name, code=True, size=9.5, ha="right")
        p.text(155, 490 + 22 * i, what, size=9.5, ha="left")
    return p


def attention() -> Picture:
    """The paper's attention mask, and the two passes that compute the same."""
    p = Picture(1000, 390)
    names = ["[CLS]", "$x_1$", "$x_2$", "[SEP]", "[M]", "[M]", "[M]"]
    side, sources = 32, 4

    def grid(left, top, rows, columns, kept=0):
        for j in columns:
            p.text(left + side * (j + 0.5), top - 14, names[j], size=8.5)
        for i, row in enumerate(rows):
            y = top + side * i
            p.text(left - 8, y + side / 2, names[row], size=8.5, ha="right")
            for j in columns:
                seen = row >= sources or j < sources
                fill = (STATE if j < kept else SOURCE if row < sources else TARGET) if seen else PAPER
                p.axes.add_patch(
                    Rectangle((left + side * j, y), side, side, facecolor=fill, edgecolor="#b8c2cc", linewidth=0.8)
                )

    p.text(187, 28, "the paper's mask, in one pass", size=11, weight="bold")
    grid(75, 80, range(7), range(7))
    p.text(338, 192, "=", size=22)
    p.text(479, 28, "encode_source", code=True, size=11, color=EDGES[SOURCE])
    grid(415, 80, range(4), range(4))
    p.text(588, 192, "+", size=22)
    p.text(787, 28, "decode_target", code=True, size=11, color=EDGES[TARGET])
    grid(675, 80 + 4 * side, range(4, 7), range(7), kept=sources)
    p.text(739, 150, "SourceState", code=True, size=9.5, color=EDGES[STATE])
    p.text(739, 168, "keys and values, kept", size=9, color=EDGES[STATE])
    text = "A row is a position that looks, a column one that is seen. The source never sees the target, so its\n"
    text += "keys and values are the same for every target: computed once, in blue, and only read, in green."
    p.text(500, 350, text, size=9.5)
    return p


def training() -> Picture:
    """What ``mist.objective`` computes."""
    p = Picture(1000, 350)
    rows = {"first look": 48, "NAT": 158, "MIST": 290}
    size = 9.5

    def step(x, y, name, fill, below="", width=128):
        p.box(x, y, width, 48 if below else 36, "", fill)
        p.text(x + width / 2, y + (16 if below else 18), name, code=True, size=size)
        if below:
            p.text(x + width / 2, y + 34, below, size=8.5)

    # source
    y = rows["NAT"]
    p.text(30, y + 18, "$X$", size=12)
    p.arrow((44, y + 18), (70, y + 18))
    step(70, y, "encode_source", SOURCE)
    p.arrow((198, y + 18), (240, y + 18), color=EDGES[STATE])
    step(240, y, "SourceState", STATE, width=110)
    # first look
    y = rows["first look"]
    p.text(398, y - 32, "all [MASK]", size=9, color=FAINT)
    p.arrow((398, y - 24), (398, y))
    step(334, y, "decode_target", TARGET, "no gradient")
    p.arrow((310, rows["NAT"]), (310, y + 24), (334, y + 24), color=EDGES[STATE])
    p.arrow((280, rows["NAT"]), (280, y + 24), (198, y + 24), color=EDGES[STATE])
    step(70, y, "length_logits", HEAD, "cross entropy")
    p.text(134, y - 12, r"$\mathcal{L}_{length}$", size=11)
    p.arrow((462, y + 24), (524, y + 24))
    p.text(493, y + 14, "argmax", size=8.5, color=FAINT)
    step(524, y, "glance", HEAD, "reveals some of $Y$")
    # NAT
    y = rows["NAT"]
    p.arrow((588, rows["first look"] + 48), (588, y), color=EDGES[HEAD])
    p.text(600, y - 32, "$Y_M$", size=11, ha="left")
    p.arrow((350, y + 18), (524, y + 18), color=EDGES[STATE])
    step(524, y, "decode_target", TARGET)
    p.arrow((652, y + 18), (690, y + 18))
    step(690, y, "output_layer", HEAD, width=118)
    p.arrow((808, y + 18), (846, y + 18))
    step(846, y, "token_loss", PAPER, width=118)
    p.text(905, y - 12, r"$\mathcal{L}_{NAT}$", size=11)
    # MIST
    y = rows["MIST"]
    p.arrow((749, 194), (749, 236), (134, 236), (134, y), color=EDGES[MIX], dashed=True)
    p.text(440, 225, "$Y_p$: argmax, no gradient", size=9, color=EDGES[MIX])
    step(70, y, "mix_source", MIX)
    p.arrow((198, y + 18), (360, y + 18), color=EDGES[MIX])
    p.text(276, y + 6, "[CLS] $Y_p$ [SEP] $X$ [SEP]", size=8.5, color=EDGES[MIX])
    step(360, y, "encode_source", SOURCE)
    p.arrow((488, y + 18), (524, y + 18), color=EDGES[STATE])
    step(524, y, "decode_target", TARGET)
    p.arrow((588, y - 36), (588, y), color=EDGES[HEAD])
    p.text(600, y - 24, "the same $Y_M$", size=9, ha="left")
    p.arrow((652, y + 18), (690, y + 18))
    step(690, y, "output_layer", HEAD, width=118)
    p.arrow((808, y + 18), (846, y + 18))
    step(846, y, "token_loss", PAPER, width=118)
    p.text(905, y - 12, r"$\mathcal{L}_{MIST}$", size=11)
    return p


PICTURES = {"architecture": architecture, "attention": attention, "training": training}


def main():
    """Draw all."""
    plt.rcParams["svg.hashsalt"] = "mist_fairseq"  # the same names of parts every time
    plt.rcParams["mathtext.fontset"] = "dejavuserif"
    for name, draw in PICTURES.items():
        draw().save(Path(__file__).with_name(f"{name}.svg"))


if __name__ == "__main__":
    main()
