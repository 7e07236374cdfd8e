// A decode, pass by pass, that can be looked at as it was after any of them.
//
//   trajectory.take(revision, [[0, "text that became final"]], seconds);
//   trajectory.at(3);       // after three passes: { cells, texts, number, seconds, latest }

export class Trajectory {
  /** Of `count` texts: one, or one for each blank. */
  constructor(count) {
    this.count = count;
    this.passes = [];
    this.commits = []; // by place: what was decided there, oldest first
  }

  /** A pass: what it decided, the text that became final with it, as [text's number, text], and when. */
  take(revision, texts, seconds) {
    const index = this.passes.length;
    this.passes.push({ number: revision.pass, block: revision.block, texts, seconds });
    revision.positions.forEach((place, each) => {
      const commit = {
        index,
        pass: revision.pass,
        token: revision.tokens[each],
        text: revision.texts[each],
        confidence: revision.confidences[each],
      };
      (this.commits[place] ??= []).push(commit);
    });
  }

  /** The state after the first `count` passes; `cells` has undefined where nothing is decided. */
  at(count) {
    const cells = Array.from(this.commits, (commits) => commits?.findLast((commit) => commit.index < count));
    const texts = Array(this.count).fill("");
    for (const pass of this.passes.slice(0, count)) for (const [number, text] of pass.texts) texts[number] += text;
    const { number, seconds } = this.passes[count - 1] ?? { number: 0, seconds: 0 };
    return { cells, texts, number, seconds, latest: count - 1 };
  }
}
