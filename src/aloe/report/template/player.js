// The clock of an episode: its video, or the time itself where there is none. It counts in steps.

export class Player {
  #video;
  #frame = 0;
  #from = 0;
  #rate = 1;
  step = 0;
  playing = false;

  /** `every`: steps a picture of the video. `changed` is called with this player at every change. */
  constructor({ video, steps, fps, every = 1, changed }) {
    Object.assign(this, { steps, fps, every, changed });
    this.#video = video;
    video?.addEventListener('ended', () => this.pause());
    video?.addEventListener('pause', () => this.playing && this.pause());
  }

  get rate() { return this.#rate; }

  set rate(rate) {
    this.#rate = rate;
    if (this.#video) this.#video.playbackRate = rate;
    this.#from = performance.now() - (1000 * this.step) / this.fps / rate;
  }

  /** Shows a step. In the middle of a picture's time, so that rounding cannot show its neighbour. */
  seek(step) {
    this.step = Math.min(Math.max(step, 0), this.steps - 1);
    if (this.#video) this.#video.currentTime = ((Math.floor(this.step / this.every) + 0.5) * this.every) / this.fps;
    this.rate = this.#rate;
    this.changed(this);
  }

  async play() {
    if (this.step >= this.steps - 1) this.seek(0);
    this.rate = this.#rate;
    this.playing = true;
    this.changed(this);
    await this.#video?.play().catch(() => this.pause());
    this.#follow();
  }

  pause() {
    this.playing = false;
    cancelAnimationFrame(this.#frame);
    this.#video?.pause();
    this.changed(this);
  }

  toggle() { return this.playing ? this.pause() : this.play(); }

  #follow() {
    if (!this.playing) return;
    const seconds = this.#video ? this.#video.currentTime : ((performance.now() - this.#from) / 1000) * this.#rate;
    const step = Math.min(Math.floor(seconds * this.fps + 1e-3), this.steps - 1);
    if (step !== this.step) {
      this.step = step;
      this.changed(this);
    }
    if (!this.#video && step === this.steps - 1) return this.pause();
    this.#frame = requestAnimationFrame(() => this.#follow());
  }
}
