// Queries of a dashboard: variables, ranges and instants. What has no data becomes a problem.

export interface Series {
  metric: Record<string, string>;
  values: Array<[number, string]>;
}

export interface Range {
  from: number;
  to: number;
  step: number;
}

export const problems: string[] = [];

async function ask(path: string, args: Record<string, string>): Promise<any> {
  const response = await fetch(`/prom/api/v1/${path}?${new URLSearchParams(args)}`);
  const answer = await response.json();
  if (answer.status !== 'success') {
    throw new Error(answer.error);
  }
  return answer.data;
}

export class Variables {
  readonly values: Record<string, string>;

  constructor(private readonly range: Range) {
    const span = range.to - range.from;
    this.values = {
      __interval: `${range.step}s`,
      __rate_interval: `${Math.max(60, 4 * range.step)}s`,
      __range: `${span}s`,
      datasource: 'prometheus',
    };
  }

  fill(text: string): string {
    return text.replace(/\$\{([a-z_]\w*)\}|\$([a-z_]\w*)/g, (whole, braced, bare) => {
      const value = this.values[braced ?? bare];
      if (value === undefined) {
        problems.push(`unknown variable ${whole}`);
      }
      return value ?? whole;
    });
  }

  // Takes all values of a variable with several, and the first of any other.
  async load(variable: any): Promise<void> {
    if (variable.type !== 'query') {
      return;
    }
    const query = this.fill(typeof variable.query === 'string' ? variable.query : variable.query.query);
    const found = selected(await this.candidates(query), variable.regex).sort();
    if (!found.length) {
      problems.push(`the variable ${variable.name} has no value: ${query}`);
    }
    this.values[variable.name] = variable.multi ? found.join('|') : found[0] ?? '';
  }

  private async candidates(query: string): Promise<string[]> {
    const times = { start: String(this.range.from), end: String(this.range.to) };
    const names = /^label_names\((.+)\)$/.exec(query);
    if (names) {
      return ask('labels', { 'match[]': names[1], ...times });
    }
    const values = /^label_values\((.+),\s*(\w+)\)$/.exec(query);
    if (!values) {
      problems.push(`a variable with the unknown query ${query}`);
      return [];
    }
    return ask(`label/${values[2]}/values`, { 'match[]': values[1], ...times });
  }
}

function selected(candidates: string[], regex?: string): string[] {
  if (!regex) {
    return candidates;
  }
  const pattern = new RegExp(regex.replace(/^\/|\/$/g, ''));
  return candidates.flatMap((each) => {
    const found = pattern.exec(each);
    return found ? [found.groups?.value ?? found[1] ?? each] : [];
  });
}

export async function seriesOf(target: any, title: string, variables: Variables, range: Range): Promise<Series[]> {
  const query = variables.fill(target.expr);
  const data = target.instant
    ? await ask('query', { query, time: String(range.to) })
    : await ask('query_range', {
        query,
        start: String(range.from),
        end: String(range.to),
        step: String(range.step),
      });
  if (!data.result.length) {
    problems.push(`no data: ${title}: ${query}`);
  }
  return data.result.map((each: any) => ({ metric: each.metric, values: each.values ?? [each.value] }));
}

export function legendOf(target: any, metric: Record<string, string>): string {
  if (target.legendFormat) {
    return target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_: string, name: string) => metric[name] ?? '');
  }
  return Object.entries(metric).map(([name, value]) => `${name}="${value}"`).join(' ');
}
